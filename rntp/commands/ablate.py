"""`rntp ablate`: a grid of runs, seeds and controls as one table."""

import argparse
import json
from pathlib import Path

NAME = "ablate"
HELP = "a grid of runs, seeds and controls: one table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on: finished runs stay, others resume"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ARM",
        help="run this arm; may be repeated; the table has all that are finished",
    )
    parser.add_argument(
        "--on", choices=("here", "ray"), default="here", help="ray: tasks of a Ray cluster"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print the runs and stop")
    instead.add_argument(
        "--table", action="store_true", help="run nothing, make the table from finished runs"
    )
    instead.add_argument(
        "--run",
        dest="number",
        type=int,
        metavar="N",
        help="one run of --dry-run's list, from 0"
        "; no table: for job arrays, with --table behind them",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run a grid, or tell what it would run, or make its table. Raises the failure of its runs."""
    from rich.console import Console

    from rntp.ablate import PAGE, Experiment, ablate, dry_run, run_one, tabulate
    from rntp.ablate.table import grid_table, results_table

    experiment = Experiment.load(arguments.experiment)
    if arguments.dry_run:
        facts = dry_run(experiment, arguments.only)
        print(json.dumps(facts, indent=2) if arguments.json else grid_table(facts))
        return
    if arguments.number is not None:
        failure = run_one(experiment, arguments.number, console=Console(stderr=True))
        if failure is not None:
            raise failure
        return
    failure = None
    if arguments.table:
        results = tabulate(experiment)
    else:
        results, failure = ablate(
            experiment,
            jobs=arguments.jobs,
            resume=arguments.resume,
            only=arguments.only,
            console=Console(stderr=True),
            on_ray=arguments.on == "ray",
        )
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print(results_table(results))
        print(f"page: {experiment.results_dir / PAGE}")
        print(f"table: {experiment.results_dir / 'table.md'}")
    if failure is not None:
        raise failure
