"""The runs of an experiment: their configs and folders, checked before the first one starts."""

import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rntp.ablate.experiment import Experiment, nearest, slug_of
from rntp.ablate.matching import match_facts, matched_steps, refuse_other_steps, step_cost
from rntp.config import Config
from rntp.data.corpus import Data, open_data
from rntp.errors import ConfigError, DataError, RntpError
from rntp.run import folder as run_folder
from rntp.run.log import numbered_files, read_manifest, read_metrics
from rntp.training.preflight import check_names

State = Literal["new", "begun", "finished"]


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed. overrides: as `rntp train BASE --set` takes them.

    inherited: the arm is another experiment's, which may have run it already.
    """

    arm: str
    seed: int
    base: Path
    overrides: tuple[str, ...]
    config: Config
    inherited: bool = False

    @property
    def folder(self) -> Path:
        return self.config.run.dir

    @property
    def label(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What the run prints; beside the run folder, which holds only what a run writes itself."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def starts(self) -> Path:
        """One object for every start of the run: when, how long, exit code, load of the machine."""
        return self.folder.with_name(f"{self.folder.name}.starts.jsonl")

    @property
    def arguments(self) -> list[str]:
        """Of `rntp`, to start or resume this run."""
        sets = [f"--set={override}" for override in self.overrides]
        return ["train", str(self.base), *sets, "--run-dir", str(self.folder)]

    @property
    def command(self) -> list[str]:
        """The same as a process, in this interpreter."""
        return [sys.executable, "-m", "rntp.cli", *self.arguments]


def plan(experiment: Experiment) -> list[Run]:
    """Every run, arm by arm. Raises ConfigError that names every arm with a mistake."""
    runs: list[Run] = []
    problems = _Problems()
    for arm in experiment.arms:
        for seed in experiment.seeds:
            with problems.of(arm):
                runs.append(_run(experiment, arm, seed))
    problems.raise_any(f"{experiment.name} cannot run:")
    if experiment.match:
        runs = _matched(experiment, runs)
    sources = {column.source for column in experiment.columns.values()}
    if sources - {"metrics"} and not any(run.config.evaluation.enabled for run in runs):
        raise ConfigError(
            "columns read the evaluation, and evaluation.docs is 0 in every arm; raise it, "
            "or read metrics"
        )
    return runs


def select(experiment: Experiment, runs: Sequence[Run], only: Iterable[str]) -> list[Run]:
    """The runs of the arms in `only`, all of them without any. Raises ConfigError."""
    only = list(only)
    for name in only:
        if name not in experiment.arms:
            raise ConfigError(f"--only: no arm {name!r}{nearest(name, experiment.arms)}")
    return [run for run in runs if not only or run.arm in only]


def check_start(runs: Sequence[Run], resume: bool) -> None:
    """Refuse folders that a run cannot start or go on in, and corpora that are not there.

    Raises ConfigError or DataError that names every arm concerned; writes nothing.
    """
    there = [run for run in runs if run.folder.exists() and not run.inherited]
    if there and not resume:
        listed = [f"  {run.folder}" for run in there[:5]]
        listed += [f"  … and {len(there) - 5} more"] if len(there) > 5 else []
        raise ConfigError(
            "\n".join(["these runs exist; go on with --resume, or delete them:", *listed])
        )
    problems = _Problems()
    manifests: dict[str, Data] = {}
    for run in runs:
        with problems.of(run.arm):
            run_folder.check(run.config, "auto", same_measures=True)
            source = str(run.config.data.source)
            if source not in manifests:
                manifests[source] = open_data(run.config)
            if state(run) == "finished":
                _check_corpus(run, manifests[source])
    problems.raise_any("the grid cannot start (its folders are set by `runs:` and `name:`):")


def state(run: Run) -> State:
    """finished: of this config, with `run.steps` steps and the evaluation after them."""
    if not run.folder.exists():
        return "new"
    try:
        there = run_folder.load_config(run.folder)
        same = (there.identity(), there.measured()) == (
            run.config.identity(),
            run.config.measured(),
        )
    except ConfigError:
        same = False
    return "finished" if same and _reached_the_end(run) else "begun"


def steps_done(run: Run) -> int:
    """Lines of metrics.jsonl, one a step; cheap enough to ask again and again."""
    path = run.folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def matching(experiment: Experiment, runs: Iterable[Run]) -> dict[str, Any] | None:
    """Return what the arms will spend, if they are matched; see `match_facts`. runs: those of
    `plan`."""
    if not experiment.match:
        return None
    assert experiment.reference is not None
    configs = {run.arm: run.config for run in runs}
    return match_facts(experiment.match, experiment.reference, configs)


def _matched(experiment: Experiment, runs: Sequence[Run]) -> list[Run]:
    """The runs with the steps that their arms may make."""
    assert experiment.match is not None
    reference = next(run.config for run in runs if run.arm == experiment.reference)
    problems, found = _Problems(), list[Run]()
    for run in runs:
        with problems.of(run.arm):
            refuse_other_steps(run.config.run.steps, reference.run.steps)
            cost = step_cost(experiment.match, run.config)
            steps = matched_steps(cost, step_cost(experiment.match, reference), reference.run.steps)
            same = run.arm == experiment.reference
            found.append(run if same else _run(experiment, run.arm, run.seed, steps))
    problems.raise_any(f"{experiment.name} cannot be matched:")
    return found


def _run(experiment: Experiment, arm: str, seed: int, steps: int | None = None) -> Run:
    """steps: in place of the config's."""
    home = experiment.runs_dir(arm)
    folder = home / slug_of(arm) / f"seed_{seed}"
    name = {"run.name": f"{home.name}, {arm}, seed {seed}"}
    fields = {**name, **experiment.overrides(arm), "run.seed": seed}
    fields |= {"run.steps": steps} if steps is not None else {}
    overrides = tuple(f"{field}={_yaml(value)}" for field, value in fields.items())
    config = Config.load(experiment.base, [*overrides, f"run.dir={_yaml(str(folder))}"])
    check_names(config)
    return Run(arm, seed, experiment.base, overrides, config, experiment.is_inherited(arm))


def _yaml(value: object) -> str:
    """A value in one line of YAML. JSON would not do: YAML reads its 1e-05 as a text."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _reached_the_end(run: Run) -> bool:
    steps = run.config.run.steps
    if run.config.evaluation.enabled:
        return any(step == steps for step, _ in numbered_files(run.folder / "eval", "json"))
    metrics = read_metrics(run.folder)
    return bool(metrics) and int(metrics[-1]["step"]) >= steps


def _check_corpus(run: Run, manifest: Data) -> None:
    trained_on = read_manifest(run.folder).get("data_digest")
    if trained_on != manifest.digest:
        raise DataError(
            f"{run.folder} is finished and was trained on another corpus than that of "
            f"{run.config.data.source} ({manifest.digest[:16]}); restore it, or delete the run"
        )


class _Problems:
    """Collects errors, so that all are told at once; one that several arms share is told once."""

    def __init__(self) -> None:
        self._arms: dict[str, list[str]] = {}
        self._kinds: set[type[RntpError]] = set()

    @contextmanager
    def of(self, arm: str) -> Iterator[None]:
        """Take over an error of this arm."""
        try:
            yield
        except RntpError as error:
            arms = self._arms.setdefault(str(error), [])
            arms += [arm] if arm not in arms else []
            self._kinds.add(type(error))

    def raise_any(self, headline: str) -> None:
        """Raise what was collected: the kind of error that all have, or else ConfigError."""
        if not self._arms:
            return
        lines = [headline]
        for message, arms in self._arms.items():
            lines += [f"  {'; '.join(arms)}:", textwrap.indent(message, "    ")]
        kind = self._kinds.pop() if len(self._kinds) == 1 else ConfigError
        raise kind("\n".join(lines))
