"""`rntp train`: train, or resume training; or tell what that would take."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rntp.commands.common import config_arguments, load_config

if TYPE_CHECKING:
    from rntp.config import Config

NAME = "train"
HELP = "train, or resume training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    config_arguments(parser)
    parser.add_argument("--run-dir", type=Path, help="instead of run.dir")
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="auto: go on where the run folder ends (default)",
    )
    parser.add_argument(
        "--accept-data-change",
        action="store_true",
        help="resume on another corpus than the checkpoint's, as a new segment of the run",
    )
    parser.add_argument("--dry-run", action="store_true", help="print derived sizes and stop")
    parser.add_argument("--json", action="store_true", help="print the dry run as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Train until `run.steps`, and write the report. Raises as `rntp.Trainer`."""
    config = load_config(arguments)
    if arguments.dry_run:
        _dry_run(config, arguments.json)
        return
    from rntp.runtime.signals import StopRequest

    with StopRequest() as stop:  # before the seconds that the imports and the model take
        from rntp.report import build_report
        from rntp.runtime.memory import keep_freed_memory
        from rntp.runtime.ranks import open_ranks
        from rntp.show import before_after
        from rntp.trainer import Trainer

        keep_freed_memory()
        with open_ranks(config) as ranks:
            trainer = Trainer(
                config,
                resume=arguments.resume,
                accept_data_change=arguments.accept_data_change,
                stop=stop,
                ranks=ranks,
            )
            comparison = trainer.fit()
    if not ranks.is_first:
        return
    report = build_report([config.run.dir], config.run.dir / "report.html")
    if comparison is not None:
        print(before_after(comparison))
    print(f"report: {report}")


def _dry_run(config: "Config", as_json: bool) -> None:
    from rntp.bench.duration import measure_step
    from rntp.show import facts_table
    from rntp.training.estimate import Shape, estimate
    from rntp.training.preflight import check_names, missing_data

    check_names(config)
    shape = Shape.of_spec(config.model.spec, config.model.sharing)
    sizes = estimate(config, shape)
    step = measure_step(config)
    sizes |= {
        "seconds per step": step.seconds,
        "seconds per step, spread of the measurement": step.spread,
        "minutes in all, without evaluation": step.seconds * config.run.steps / 60,
    }
    warnings = [*config.warnings(), *missing_data(config)]
    if not shape.shares and config.model.sharing == "auto":
        warnings.append(
            f"{config.model.spec} will hardly run token trees, so that these are the sizes of "
            "model.sharing: none; the check at load decides"
        )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(sizes, indent=2))
        return
    print(facts_table(sizes))
    print(
        "Nothing was written. Memory is an estimate; time was measured on models of "
        f"{step.layers[0]} and {step.layers[1]} layers, {step.runs} times each. Both are at full "
        "thought length."
    )
