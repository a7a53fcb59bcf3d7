"""`rntp report`: one static page of one or more runs."""

import argparse
from pathlib import Path

NAME = "report"
HELP = "one static HTML page of one or more runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, help="default: report.html in the first run folder")


def run(arguments: argparse.Namespace) -> None:
    """Write the page, and print where it is."""
    from rntp.report import build_report

    out = arguments.out or arguments.run_dirs[0] / "report.html"
    print(f"report: {build_report(arguments.run_dirs, out)}")
