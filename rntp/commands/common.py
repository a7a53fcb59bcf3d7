"""What commands share: arguments of a config, and what they say while they work."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rntp.config import Config


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and --set."""
    parser.add_argument("config", type=Path, metavar="CONFIG")
    set_argument(parser)


def set_argument(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add --set. more: what else is to be said of it."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        help=f"override one field; may be repeated{more}",
    )


def made_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a command takes that makes a corpus of the pages that a config trains on."""
    config_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the corpus to write"
    )
    parser.add_argument(
        "--contexts",
        type=int,
        default=1000,
        metavar="N",
        help="contexts of the training stream (default 1000)",
    )


def load_config(arguments: argparse.Namespace) -> "Config":
    """Load the config that the arguments name, with their overrides. Raises ConfigError."""
    from rntp.config import Config

    overrides = list(arguments.overrides)
    if getattr(arguments, "run_dir", None):
        overrides.append(f"run.dir={json.dumps(str(arguments.run_dir))}")
    return Config.load(arguments.config, overrides)


def say(text: str) -> None:
    """Tell people how it goes: a line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them, as a type of argparse."""
    return [int(part) for part in text.split(",")]
