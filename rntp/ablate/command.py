"""What `rntp ablate` does: check everything, run the grid, make table, plot and page."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from rntp.ablate.experiment import Experiment
from rntp.ablate.grid import Run, check_start, matching, plan, select, state
from rntp.ablate.launch import Ended, last_lines, launch
from rntp.ablate.matching import match_lines
from rntp.ablate.on_ray import launch_on_ray
from rntp.ablate.page import page
from rntp.ablate.results import (
    Record,
    Results,
    curve_of,
    gather,
    missing_columns,
    read_records,
)
from rntp.ablate.table import PLOT, markdown
from rntp.errors import ConfigError, RntpError
from rntp.runtime.files import write_json, write_text_atomic
from rntp.runtime.provenance import redact, secret_values

FINDING = "finding.md"
"""Written by people; taken over into table.md and the page and never written here."""
PAGE = "index.html"


class RunsFailed(RntpError):
    """Some runs of a grid did not end well. The exit code is that of the first of them."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def ablate(
    experiment: Experiment,
    *,
    jobs: int = 1,
    resume: bool = False,
    only: Sequence[str] = (),
    console: Console,
    on_ray: bool = False,
) -> tuple[Results, RunsFailed | None]:
    """Run what is not finished yet, `jobs` at a time, and write table, plot, page and
    JSON.

    on_ray: as tasks of a Ray cluster; see `rntp.ablate.on_ray`.

    Returns the results, and the failure to raise once they are shown. Raises ConfigError or
    DataError before anything starts, and Preempted after the runs have saved.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be 1 or more, not {jobs}")
    runs = plan(experiment)
    chosen = select(experiment, runs, only)
    _check_plot(experiment)
    check_start(chosen, resume)
    experiment.results_dir.mkdir(parents=True, exist_ok=True)

    matched = matching(experiment, runs)
    for line in match_lines(matched) if matched else ():
        console.print(Text(line), soft_wrap=True)
    todo = [run for run in chosen if state(run) != "finished"]
    warner = ColumnWarner(experiment, console)
    for run in (run for run in runs if state(run) == "finished"):
        warner(run)
    if len(todo) < len(chosen):
        done = len(chosen) - len(todo)
        console.print(Text(f"{done} of {len(chosen)} runs are finished already"))
    start = launch_on_ray if on_ray else launch
    ended = start(todo, jobs=jobs, console=console, on_finished=warner) if todo else []
    return _write(experiment, runs), _failure(ended)


def run_one(experiment: Experiment, number: int, *, console: Console) -> RunsFailed | None:
    """Run or resume one run of the grid, from 0, and make no table: a task of a job array.

    Returns its failure. Raises as `ablate`.
    """
    runs = plan(experiment)
    if not 0 <= number < len(runs):
        raise ConfigError(f"--run {number}: {experiment.name} has runs 0 … {len(runs) - 1}")
    run = runs[number]
    check_start([run], resume=True)
    if state(run) == "finished":
        console.print(Text(f"{run.label} is finished already"))
        return None
    return _failure(launch([run], jobs=1, console=console, on_finished=lambda run: None))


def tabulate(experiment: Experiment) -> Results:
    """Table, plot, page and JSON from finished runs. Raises ConfigError without any."""
    runs = plan(experiment)
    _check_plot(experiment)
    if not any(state(run) == "finished" for run in runs):
        raise ConfigError(f"no run of {experiment.name} is finished; run the grid first")
    experiment.results_dir.mkdir(parents=True, exist_ok=True)
    return _write(experiment, runs)


def dry_run(experiment: Experiment, only: Sequence[str] = ()) -> dict[str, Any]:
    """Return what would run, as facts; the same checks of the configs, nothing written."""
    planned = plan(experiment)
    runs = select(experiment, planned, only)
    _check_plot(experiment)
    return {
        "name": experiment.name,
        "question": experiment.question,
        "match": matching(experiment, planned),
        "table": str(experiment.results_dir / "table.md"),
        "runs": [
            {
                "arm": run.arm,
                "seed": run.seed,
                "control": run.arm in experiment.controls,
                "steps": run.config.run.steps,
                "state": state(run),
                "config_digest": run.config.digest(),
                "folder": str(run.folder),
                "arguments": run.arguments,
            }
            for run in runs
        ],
    }


def _write(experiment: Experiment, runs: Sequence[Run]) -> Results:
    records = read_records(runs)
    results = redact(gather(experiment, runs, records), secret_values())
    folder = experiment.results_dir
    finding = folder / FINDING
    text = finding.read_text(encoding="utf-8") if finding.is_file() else None
    if experiment.plot:
        _draw(experiment, results, records)
    write_json(folder / "table.json", results)
    write_text_atomic(folder / "table.md", markdown(results, text))
    plot = (folder / PLOT).read_bytes() if experiment.plot else None
    write_text_atomic(folder / PAGE, page(results, text, plot, records))
    return results


def _draw(experiment: Experiment, results: Results, records: Sequence[Record]) -> None:
    from rntp.ablate.plot import ArmData, Labels, save_plot

    plot = experiment.plot
    assert plot is not None
    arms = [
        ArmData(
            name=arm["name"],
            control=arm["control"],
            reference=arm["name"] == experiment.reference,
            values=[
                row["values"][plot.y]
                for row in arm["runs"]
                if row["values"].get(plot.y) is not None
            ],
            x=plot.x.get(arm["name"]),
            curves=[
                curve_of(plot.curve, record)
                for record in records
                if plot.curve and record.run.arm == arm["name"] and curve_of(plot.curve, record)
            ],
        )
        for arm in results["arms"]
    ]
    labels = Labels(results["question"], plot.y, plot.x_label, plot.x_scale, plot.curve)
    save_plot(arms, labels, experiment.results_dir)


def _check_plot(experiment: Experiment) -> None:
    if experiment.plot and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "the plot needs matplotlib; install it with `pip install 'rntp[ablate]'`, or take "
            "`plot:` out of the experiment"
        )


def _failure(ended: Iterable[Ended]) -> RunsFailed | None:
    """Which runs failed, and how the log of the first of them ends."""
    ended = list(ended)
    failed = [e for e in ended if e.exit_code != 0 or state(e.run) != "finished"]
    if not failed:
        return None
    lines = [f"{len(failed)} of {len(ended)} runs failed; the table is of the others:"]
    for e in failed:
        # A run that ends well and is not finished had another config than was checked.
        why = f"exit code {e.exit_code}" if e.exit_code else f"{e.run.base} changed meanwhile"
        lines.append(f"  {e.run.label}: {why}; {e.run.log}")
    first = failed[0]
    lines += [f"the log of {first.run.label} ends:", *(f"  {x}" for x in last_lines(first.run))]
    lines.append("the same command with --resume runs only these")
    return RunsFailed("\n".join(lines), first.exit_code or ConfigError.exit_code)


class ColumnWarner:
    """After the first finished run, says which columns it has nothing for: a misspelt path should
    not wait for the last run."""

    def __init__(self, experiment: Experiment, console: Console) -> None:
        self._experiment, self._console = experiment, console
        self._done = False

    def __call__(self, run: Run) -> None:
        if self._done:
            return
        records = read_records([run])
        self._done = bool(records)
        missing = missing_columns(self._experiment, records) if records else []
        if missing:
            lines = [f"warning: the first finished run ({run.label}) lacks columns:", *missing]
            self._console.print(Text("\n  ".join(lines), style="yellow"), soft_wrap=True)
