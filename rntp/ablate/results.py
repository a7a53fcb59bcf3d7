"""What the runs of a grid left behind, gathered into one object of JSON.

That object holds everything that table and plot show; the plot's learning curves come on top.
"""

import difflib
import json
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rntp.ablate.experiment import Column, Experiment, slug_of
from rntp.ablate.grid import Run, matching, state
from rntp.ablate.numbers import Curve, paired_difference, summarize
from rntp.errors import ConfigError
from rntp.run.log import read_manifest, read_metrics, starts_of
from rntp.runtime.files import read_json_lines

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """A finished run. evaluations: by step, without their pages."""

    run: Run
    evaluations: dict[int, dict]
    metrics: list[dict]
    manifest: dict

    @property
    def before(self) -> dict | None:
        """The evaluation before training, or None without one."""
        return self.evaluations.get(0)

    @property
    def after(self) -> dict | None:
        """The evaluation after the last step, or None without one."""
        return self.evaluations.get(self.run.config.run.steps)


def read_records(runs: Iterable[Run]) -> list[Record]:
    """Read the records of the finished runs. Raises ConfigError that names a damaged file."""
    return [_read(run) for run in runs if state(run) == "finished"]


def value_of(column: Column, record: Record) -> float | None:
    """The number of a column; None where the run has none, or none that is finite."""
    if column.source == "metrics":
        rows = record.metrics[-column.last :] if column.last else record.metrics
        found = [x for row in rows if (x := lookup(row, column.path)) is not None]
        if not found:
            return None
        return sum(found) if column.sum else sum(found) / len(found)
    if column.source == "reach":
        return _reached(column, record)
    before, after = lookup(record.before, column.path), lookup(record.after, column.path)
    if column.source == "change":
        return None if before is None or after is None else after - before
    return before if column.source == "before" else after


def _reached(column: Column, record: Record) -> float | None:
    """The first step with an evaluation of the column's level, or what was counted up to there."""
    level = column.level if column.level is not None else math.inf
    for step, evaluation in sorted(record.evaluations.items()):
        value = lookup(evaluation, column.path)
        if value is None or value < level:
            continue
        if column.count is None:
            return float(step)
        counted = (lookup(row, column.count) for row in record.metrics if int(row["step"]) <= step)
        return sum(x for x in counted if x is not None)
    return None


def lookup(tree: object, path: str) -> float | None:
    """The number at a path of keys joined by slashes, the longest key first at each level.

    None if nothing lies there, or no number.
    """
    if not path:
        return float(tree) if isinstance(tree, int | float) else None
    children, parts = _children(tree), path.split("/")
    for count in range(len(parts), 0, -1):
        key = "/".join(parts[:count])
        if key in children:
            found = lookup(children[key], "/".join(parts[count:]))
            if found is not None:
                return found
    return None


def leaves(tree: object) -> Iterator[str]:
    """The paths of all numbers in a tree; of those that are not finite, too."""
    for key, child in _children(tree).items():
        if child is None or isinstance(child, int | float):
            yield key
        else:
            yield from (f"{key}/{path}" for path in leaves(child))


def missing_columns(experiment: Experiment, records: Sequence[Record]) -> list[str]:
    """A line for every column that no record has a number for, with the near keys."""
    lines = []
    for header, column in experiment.columns.items():
        if any(_is_there(column, record) for record in records):
            continue
        known = list(dict.fromkeys(key for r in records for key in _known(column, r)))
        lines.append(f"{header!r}: no number at {column.path!r}; {_near(column.path, known)}")
    curve = experiment.plot.curve if experiment.plot else None
    if curve and not any(curve_of(curve, record) for record in records):
        known = list(dict.fromkeys(key for r in records for row in r.metrics for key in row))
        lines.append(f"plot.curve: no metric {curve!r}; {_near(curve, known)}")
    return lines


def _is_there(column: Column, record: Record) -> bool:
    """Whether a run has what a column reads; that a level was not reached is an answer, too."""
    if column.source != "reach":
        return value_of(column, record) is not None
    return lookup(record.after, column.path) is not None and (
        column.count is None or any(lookup(row, column.count) is not None for row in record.metrics)
    )


def curve_of(key: str, record: Record) -> Curve:
    """A training metric by step, without the steps that have none."""
    found = ((int(row["step"]), lookup(row, key)) for row in record.metrics)
    return [(step, value) for step, value in found if value is not None]


def gather(experiment: Experiment, runs: Sequence[Run], records: Sequence[Record]) -> Results:
    """Everything that the table says.

    Raises ConfigError for a column that no run has, once there is a finished run of every arm:
    before, the arms that have it may be still to come.
    """
    missing = missing_columns(experiment, records)
    if missing and {record.run.arm for record in records} == set(experiment.arms):
        lines = [f"  {line}" for line in missing]
        raise ConfigError(
            "\n".join(
                [
                    f"no finished run of {experiment.name} has these columns; mend them and make "
                    "the table again with --table:",
                    *lines,
                ]
            )
        )
    by_run = {record.run.label: record for record in records}
    arms = [_arm(experiment, arm, runs, by_run) for arm in experiment.arms]
    return {
        "name": experiment.name,
        "question": experiment.question,
        "base": str(experiment.base),
        "set": experiment.set,
        "seeds": list(experiment.seeds),
        "controls": list(experiment.controls),
        "reference": experiment.reference,
        "match": matching(experiment, runs),
        "columns": {
            header: {**column.model_dump(exclude_defaults=True), "meaning": column.meaning}
            for header, column in experiment.columns.items()
        },
        "plot": experiment.plot.model_dump() if experiment.plot else None,
        "arms": [{**arm, **_difference(experiment, arm, arms)} for arm in arms],
        "provenance": _provenance(runs, records),
    }


def _arm(
    experiment: Experiment, arm: str, runs: Sequence[Run], by_run: Mapping[str, Record]
) -> dict:
    mine = [run for run in runs if run.arm == arm]
    rows = [_row(experiment, run, by_run.get(run.label)) for run in mine]
    columns = {}
    for header in experiment.columns:
        values = [row["values"][header] for row in rows if row["values"]]
        summary = summarize([value for value in values if value is not None])
        columns[header] = asdict(summary) if summary else None
    return {
        "name": arm,
        "folder": slug_of(arm),
        "control": arm in experiment.controls,
        "overrides": experiment.arms[arm],
        "steps": mine[0].config.run.steps,
        "columns": columns,
        "runs": rows,
    }


def _row(experiment: Experiment, run: Run, record: Record | None) -> dict:
    starts = _starts(run)
    return {
        "seed": run.seed,
        "state": "finished" if record else state(run),
        "exit_code": starts[-1].get("exit_code") if starts else None,
        "values": {h: value_of(c, record) for h, c in experiment.columns.items()} if record else {},
        "folder": str(run.folder),
        "config_digest": run.config.digest(),
        "data_digest": record.manifest.get("data_digest") if record else None,
        "git": record.manifest.get("git") if record else None,
        "starts": starts,
        "command": shlex.join(["rntp", *run.arguments]),
    }


def _difference(experiment: Experiment, arm: dict, arms: Sequence[dict]) -> dict:
    """How the arm's plotted column differs from the reference's, where there is one."""
    if experiment.reference is None or experiment.plot is None:
        return {}
    header = experiment.plot.y
    reference = next(other for other in arms if other["name"] == experiment.reference)
    if arm is reference:
        return {"difference": None}
    found = paired_difference(_by_seed(arm, header), _by_seed(reference, header))
    return {"difference": asdict(found) if found else None}


def _by_seed(arm: dict, header: str) -> dict[int, float]:
    values = {row["seed"]: row["values"].get(header) for row in arm["runs"]}
    return {seed: value for seed, value in values.items() if value is not None}


def _provenance(runs: Sequence[Run], records: Sequence[Record]) -> dict:
    manifests = [record.manifest for record in records]
    # A run that was resumed may have gone on with other code or on another machine.
    stretches = [part for m in manifests for part in starts_of(m)]
    starts = [start for run in runs for start in _starts(run)]
    loads = [load for start in starts for load in start.get("load_average", [])]
    return {
        "made": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": _distinct(part.get("git") for part in stretches),
        "data_digests": _distinct(manifest.get("data_digest") for manifest in manifests),
        "devices": _distinct(part.get("device") for part in stretches),
        "threads": _distinct(part.get("threads") for part in stretches),
        "versions": _distinct(part.get("versions") for part in stretches),
        "models": _distinct(manifest.get("model") for manifest in manifests),
        "load_average": {"lowest": min(loads), "highest": max(loads)} if loads else None,
        "wall_s": round(sum(start.get("wall_s", 0.0) for start in starts), 1),
        "started": min((start["started"] for start in starts), default=None),
        "ended": max((start["ended"] for start in starts), default=None),
    }


def _distinct(values: Iterable[object]) -> list:
    """In order of appearance; what is unknown is left out."""
    found: list = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _starts(run: Run) -> list[dict]:
    try:
        return read_json_lines(run.starts) if run.starts.is_file() else []
    except ValueError as error:
        raise ConfigError(f"{error}; mend or remove the file") from error


def _read(run: Run) -> Record:
    steps = run.config.run.steps
    return Record(
        run=run,
        evaluations={
            step: _read_evaluation(path)
            for path in sorted((run.folder / "eval").glob("step_*.json"))
            if (step := int(path.stem.removeprefix("step_"))) <= steps
        },
        metrics=[row for row in read_metrics(run.folder) if int(row["step"]) <= steps],
        manifest=read_manifest(run.folder),
    )


def _read_evaluation(path: Path) -> dict:
    try:
        evaluation = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from error
    if not isinstance(evaluation, dict):
        raise ConfigError(f"{path} holds no JSON object")
    evaluation.pop("pages", None)  # the texts: most of the file, and no numbers of the run
    return evaluation


def _children(tree: object) -> Mapping[str, object]:
    if isinstance(tree, dict):
        return tree
    return {str(i): child for i, child in enumerate(tree)} if isinstance(tree, list) else {}


def _known(column: Column, record: Record) -> list[str]:
    if column.source == "metrics":
        return list(dict.fromkeys(key for row in record.metrics for key in leaves(row)))
    return list(leaves(record.before if column.source == "before" else record.after))


def _near(path: str, known: Sequence[str]) -> str:
    if not known:
        return "these runs wrote nothing to read it from"
    inside = [key for key in known if key.startswith(f"{path}/")]
    near = [*inside, *difflib.get_close_matches(path, known, n=5, cutoff=0.5)][:5]
    return f"near: {', '.join(near)}" if near else f"there are: {', '.join(known[:40])}"
