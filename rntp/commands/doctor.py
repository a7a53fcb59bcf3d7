"""`rntp doctor`: what this machine can run, and what is missing."""

import argparse
import json
from pathlib import Path

NAME = "doctor"
HELP = "what this machine can run, and what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> None:
    """Print facts of the machine, and what is missing with its remedy."""
    from rntp.show import facts_table
    from rntp.training.diagnosis import diagnose

    facts, missing = diagnose(arguments.config)
    if arguments.json:
        print(json.dumps({"facts": facts, "missing": missing}, indent=2))
        return
    print(facts_table(facts))
    for line in missing:
        print(f"missing: {line}")
