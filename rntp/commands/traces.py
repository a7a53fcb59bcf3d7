"""`rntp traces`: the best thoughts of a run, as a data set or as a corpus."""

import argparse
import json
from pathlib import Path

from rntp.commands.common import say

NAME = "traces"
HELP = "the best thoughts of a run, as a data set or as shards to train on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="FILE.jsonl or FILE.parquet; FILE.meta.json beside it has provenance and fields",
    )
    parser.add_argument(
        "--shards",
        action="store_true",
        help="--out is a corpus folder: prefix, thought and continuation, a document each, for "
        "training with thought.thoughts_per_position: 0",
    )
    parser.add_argument(
        "--mixed",
        action="store_true",
        help="with --shards: as many plain pages of the run's corpus beside them (2608.23256)",
    )
    parser.add_argument(
        "--min-gain",
        type=float,
        default=0.0,
        metavar="NATS",
        help="least gain of the continuation, nats per token (default 0)",
    )
    parser.add_argument(
        "--max-overlap",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="most of the continuation's 3-grams that the thought may say (default 1: all)",
    )
    parser.add_argument(
        "--unclosed",
        action="store_true",
        help="also thoughts that were cut at their longest, their close marker forced",
    )
    parser.add_argument(
        "--per-position",
        type=int,
        default=1,
        metavar="N",
        help="so many thoughts of a position at most, the best (default 1)",
    )
    parser.add_argument("--json", action="store_true", help="print provenance as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Write the thoughts that are wanted, and print where the others were left out."""
    from rntp.show import facts_table
    from rntp.traces import export_traces
    from rntp.traces.select import Wanted

    wanted = Wanted(
        min_gain=arguments.min_gain,
        max_overlap=arguments.max_overlap,
        per_position=arguments.per_position,
        unclosed=arguments.unclosed,
    )
    facts = export_traces(
        arguments.run_dir,
        arguments.out,
        wanted,
        shards=arguments.shards,
        mixed=arguments.mixed,
        say=say,
    )
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print(facts_table({f"thoughts {name}": n for name, n in facts["funnel"].items()}))
        print(f"written to {arguments.out}")
