"""`rntp gate`: learn where a trained model's thoughts pay, and write that beside its weights."""

import argparse
import json
from pathlib import Path

from rntp.commands.common import numbers, say

NAME = "gate"
HELP = "learn where a trained model's thoughts pay; rntp read and generate then think there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run that trained it")
    parser.add_argument("model", type=Path, metavar="MODEL", help="its exported folder")
    parser.add_argument(
        "--contexts", type=int, default=200, metavar="N", help="pages to think on (default 200)"
    )
    parser.add_argument(
        "--positions", type=int, default=8, metavar="K", help="of each page (default 8)"
    )
    parser.add_argument(
        "--thoughts", type=int, default=2, metavar="G", help="of each position (default 2)"
    )
    parser.add_argument(
        "--price", type=float, default=0.0, metavar="NATS", help="of a thought token (default 0)"
    )
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=[],
        metavar="N,…",
        help="tokens of shorter thoughts: the gate then also says how long one may be",
    )
    parser.add_argument(
        "--unseen",
        action="store_true",
        help="fit it to held-out pages, not to those that the model was trained on",
    )
    parser.add_argument("--checkpoint", type=int, metavar="N", help="the newest whole one if unset")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Fit the gate, print how good it is on held-out pages, and write it."""
    from rntp.evaluation.gate_of_run import learn_gate
    from rntp.evaluation.place_tables import gate_table

    found = learn_gate(
        arguments.run_dir,
        arguments.model,
        contexts=arguments.contexts,
        positions=arguments.positions,
        thoughts=arguments.thoughts,
        price=arguments.price,
        step=arguments.checkpoint,
        say=say,
        lengths=arguments.lengths,
        unseen=arguments.unseen,
    )
    print(json.dumps(found, indent=2) if arguments.json else gate_table(found))
