"""`rntp soup`: average checkpoints, and measure the average."""

import argparse
import json
from pathlib import Path

from rntp.commands.common import say

NAME = "soup"
HELP = "average checkpoints, and measure the average"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "targets",
        type=Path,
        nargs="+",
        metavar="RUN_OR_CHECKPOINT",
        help="run folders (their newest checkpoint) or checkpoints, of one base model and corpus",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the Hugging Face folder to write"
    )
    parser.add_argument(
        "--greedy",
        action="store_true",
        help="keep an ingredient only if the held-out loss with thinking is no worse for it",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Write the average, and print the table."""
    from rntp.evaluation.soup import soup
    from rntp.runtime.memory import keep_freed_memory
    from rntp.show import soup_table

    keep_freed_memory()
    facts = soup(arguments.targets, arguments.out, greedy=arguments.greedy, say=say)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print(soup_table(facts))
        print(f"written to {arguments.out}; its logits are the average's")
