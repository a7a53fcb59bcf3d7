"""`rntp judge`: put known attacks to the judges of a config before anything is trained on them."""

import argparse
import json
import sys

from rntp.commands.common import config_arguments, load_config, say

NAME = "judge"
HELP = "try known attacks on the judges of a config (reward.judges)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print shares as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print what each judge takes for right; exit code 6 where the judges can be fooled."""
    from rntp.judges.auditing import TOGETHER
    from rntp.judges.command import audit_judges
    from rntp.show import audit_table

    found, complaint = audit_judges(load_config(arguments))
    print(json.dumps(found, indent=2) if arguments.json else audit_table(found, TOGETHER))
    if complaint:
        say(f"rntp: {complaint}")
        sys.exit(6)
