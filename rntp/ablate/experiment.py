"""The experiment file: arms × seeds over one config, and the numbers to read off the runs.

Strict, like the config of a run: an unknown key is an error that names the nearest.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from rntp.ablate.matching import SPENT, Match
from rntp.config import Section
from rntp.config.files import method_fields
from rntp.errors import ConfigError

Source = Literal["eval", "before", "change", "reach", "metrics"]
SOURCES: tuple[Source, ...] = get_args(Source)
Overrides = dict[str, Any]
"""section.field → value."""

_DEFAULT_RUNS = Path("runs/ablate")
# The grid itself sets these; an arm that did, too, would be another run than its row says.
_GRID_FIELDS = ("run.seed", "run.dir")


class Column(Section):
    """One number of a run: where it is read, and with how many digits it is shown.

    Exactly one of eval, before, change, reach and metrics holds a path. Its keys are joined by
    slashes; since keys hold slashes themselves (`nll/think`), the longest that is there is taken at
    each level. A number as a key is the place in a list, from 0.
    """

    eval: str | None = None
    """Path in the evaluation after the last step."""
    before: str | None = None
    """Path in the evaluation before training."""
    change: str | None = None
    """Path in both; the value after minus the value before."""
    reach: str | None = None
    """Path in the evaluations; the step of the first that comes to `level`."""
    level: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """reach: the value to come to, from below."""
    count: str | None = None
    """reach: key of metrics.jsonl whose sum up to that step is given in place of the step."""
    metrics: str | None = None
    """Key of metrics.jsonl; needs `last` or `sum`."""
    last: Annotated[int, Field(ge=1)] | None = None
    """metrics: the mean over so many steps at the end."""
    sum: bool = False
    """metrics: the sum over all steps."""
    digits: Annotated[int, Field(ge=0, le=12)] = 3
    """Digits after the point."""
    sign: bool = False
    """Show a + as well. A change always does."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(bool(getattr(self, name)) for name in SOURCES) != 1:
            raise ValueError(f"give one of {', '.join(SOURCES)}, with a path")
        if (self.level is not None) != bool(self.reach) or (self.count and not self.reach):
            raise ValueError("reach needs `level`; that and `count` belong to reach alone")
        if self.metrics and (self.last is None) != self.sum:
            raise ValueError("metrics needs `last: <steps>` for a mean or `sum: true`, one of them")
        if not self.metrics and (self.last is not None or self.sum):
            raise ValueError("`last` and `sum` belong to metrics; an evaluation is one number")
        return self

    @property
    def source(self) -> Source:
        return next(name for name in SOURCES if getattr(self, name))

    @property
    def path(self) -> str:
        return str(getattr(self, self.source))

    @property
    def shows_sign(self) -> bool:
        return self.sign or self.source == "change"

    @property
    def meaning(self) -> str:
        """Where the number comes from, in words."""
        if self.source == "metrics":
            over = "sum over all steps" if self.sum else f"mean over the last {self.last} steps"
            return f"`{self.path}` in training, {over}"
        if self.source == "reach":
            counted = f"sum of `{self.count}`" if self.count else "steps"
            return f"{counted} up to the first evaluation with `{self.path}` of {self.level:g}"
        when = {"eval": "after", "before": "before", "change": "change by"}[self.source]
        return f"`{self.path}` of the evaluation, {when} training"


class Plot(Section):
    """The picture: one column by arm, and beside it a training metric by step."""

    y: str
    """Header of the column to plot."""
    x: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    """Numbers by arm: a curve over them. Arms without one become horizontal lines."""
    x_label: str = ""
    """What the numbers are."""
    x_scale: Literal["linear", "log"] = "linear"
    """Of the axis of x."""
    curve: str | None = None
    """Key of metrics.jsonl for the learning curves."""


class Experiment(Section):
    """The whole experiment file. After `load`, its paths are usable from the current folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Runs and results are filed under it."""
    question: Annotated[str, Field(min_length=1)]
    """Heads the table."""
    like: Path | None = None
    """Another experiment file, relative to this one, whose keys are taken where this one has none.
    Its arms, columns and controls come first; its `set` holds here, too. Runs of its arms are kept
    under its name, so experiments that share controls run them once."""
    base: Path
    """Config of `rntp train` that every arm starts from, relative to this file."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """run.seed of the runs of each arm."""
    set: Overrides = Field(default_factory=dict)
    """Overrides for every arm."""
    arms: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=120)], Overrides], Field(min_length=1)
    ]
    """Name → overrides, which come after `set`. Their order is the table's. `from: FILE`, relative
    to this file, first takes over the fields of a method's config, its last base left out."""
    controls: tuple[str, ...] = ()
    """Arms that are controls; marked in table and plot."""
    reference: str | None = None
    """Arm that the others' plot.y is compared with, paired by seed."""
    match: Match | None = None
    """Every arm spends what the reference spends in its run.steps: `tokens` read and sampled, or
    `flop`. Steps of the others are computed before the start, by the estimate of `rntp train
    --dry-run`, and a column of what was really spent is added."""
    columns: Annotated[dict[str, Column], Field(min_length=1)]
    """Header → where to read the number. Their order is the table's."""
    plot: Plot | None = None
    """Without it there is no picture, and no need of matplotlib."""
    runs: Path | None = None
    """Folder of the run folders, relative to this file; default: runs/ablate, from the current
    folder."""
    results: Path = Path("results")
    """Folder of the results, relative to this file."""
    _homes: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an experiment file. Raises ConfigError with one line a mistake."""
        raw = _read(path)
        homes: dict[str, str] = {}
        if "like" in raw:
            raw, homes = _joined(path, raw)
        raw = _with_spent(_with_methods(raw))
        try:
            found = cls.model_validate(raw)
            found._homes = homes
        except ValidationError as error:
            lines = [_explain(problem) for problem in error.errors()]
            raise ConfigError("\n".join([f"{path} cannot be used:", *lines])) from error
        here = path.parent
        located = {
            "base": short_path(here / found.base),
            "runs": short_path(here / found.runs) if found.runs else _DEFAULT_RUNS,
            "results": short_path(here / found.results),
        }
        if not located["base"].is_file():
            raise ConfigError(
                f"{path} cannot be used:\n  base: there is no config file {located['base']}"
            )
        return found.model_copy(update=located)

    @field_validator("arms", mode="before")
    @classmethod
    def _bare_arms(cls, arms: object) -> object:
        """An arm with nothing after its colon is the base as it is."""
        if not isinstance(arms, dict):
            return arms
        return {name: {} if value is None else value for name, value in arms.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._wrong_names(), *self._wrong_overrides(), *self._wrong_slugs()]
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: a seed is given twice")
        if self.reference is not None and self.plot is None:
            problems.append("reference: the arms are compared by plot.y; give a plot")
        if self.match and self.reference is None:
            problems.append("match: the arms are matched to the reference; name one")
        if self.plot and self.plot.x_scale == "log" and min(self.plot.x.values(), default=1) <= 0:
            problems.append("plot.x: a log scale has no place for 0 and less")
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    def _wrong_names(self) -> Iterator[str]:
        named = [("controls", name) for name in self.controls]
        named += [("reference", self.reference)] if self.reference is not None else []
        named += [("plot.x", name) for name in self.plot.x] if self.plot else []
        for place, name in named:
            if name not in self.arms:
                yield f"{place}: no arm {name!r}{nearest(name, self.arms)}"
        if self.plot and self.plot.y not in self.columns:
            yield f"plot.y: no column {self.plot.y!r}{nearest(self.plot.y, self.columns)}"

    def _wrong_overrides(self) -> Iterator[str]:
        for place, overrides in (("set", self.set), *self.arms.items()):
            for key in overrides:
                if key in _GRID_FIELDS:
                    yield f"{place}: {key} is what the grid sets, from `seeds` and `runs`"
                elif not re.fullmatch(r"\w+\.\w+", key):
                    yield f"{place}: expected section.field, not {key!r}"

    def _wrong_slugs(self) -> Iterator[str]:
        taken: dict[str, str] = {}
        for arm in self.arms:
            slug = slug_of(arm)
            if not slug:
                yield f"arms: {arm!r} has no letter or digit to name its folder by"
            elif slug in taken:
                yield f"arms: {arm!r} and {taken[slug]!r} would share a folder; rename one"
            taken[slug] = arm

    def is_inherited(self, arm: str) -> bool:
        """The arm is one of the file in `like`."""
        return arm in self._homes

    def runs_dir(self, arm: str) -> Path:
        """Folder of the runs of an arm's experiment."""
        return (self.runs or _DEFAULT_RUNS) / self._homes.get(arm, self.name)

    @property
    def results_dir(self) -> Path:
        return self.results / self.name

    def overrides(self, arm: str) -> Overrides:
        """Return what is set for an arm, `set` included."""
        return {**self.set, **self.arms[arm]}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"there is no experiment file {path}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys such as `name:` and `arms:`")
    for overrides in _arms(raw).values():
        if isinstance(overrides, dict) and "from" in overrides:
            overrides["from"] = str((path.parent / str(overrides["from"])).resolve())
    return raw


def _arms(raw: dict[str, Any]) -> dict[str, Any]:
    arms = raw.get("arms")
    return arms if isinstance(arms, dict) else {}


def _with_methods(raw: dict[str, Any]) -> dict[str, Any]:
    """Arms with the fields of the file in `from`; `set` and the arm's own come after those."""
    arms = dict(_arms(raw))
    for name, overrides in arms.items():
        if isinstance(overrides, dict) and "from" in overrides:
            own = {key: value for key, value in overrides.items() if key != "from"}
            common = raw.get("set") if isinstance(raw.get("set"), dict) else {}
            method = method_fields(short_path(Path(overrides["from"])))
            arms[name] = {**method, **(common or {}), **own}
    return {**raw, "arms": arms} if arms else raw


def _with_spent(raw: dict[str, Any]) -> dict[str, Any]:
    """With a column of what is matched, unless there is one that reads it already."""
    columns = raw.get("columns")
    if raw.get("match") not in SPENT or not isinstance(columns, dict):
        return raw
    header, column = SPENT[raw["match"]]
    same = (c for c in columns.values() if isinstance(c, dict))
    if any(c.get("metrics") == column["metrics"] and c.get("sum") for c in same):
        return raw
    return {**raw, "columns": {**columns, header: column}}


def _joined(path: Path, raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys of a file with those of the one it is like, and the homes of the inherited arms."""
    other = path.parent / str(raw["like"])
    parent = _read(other)
    if "like" in parent:
        raise ConfigError(f"{other} is like another file itself; name that one, or join the two")
    for key in ("arms", "columns", "set", "controls"):
        for file, keys in ((path, raw), (other, parent)):
            if not isinstance(keys.get(key, {}), dict | list):
                raise ConfigError(f"{file}: {key} cannot be joined with those of the other file")
    matched = raw.get("match", parent.get("match")) is not None
    for key in ("match", "reference") if matched else ():
        if raw.get(key, parent.get(key)) != parent.get(key):
            raise ConfigError(
                f"{path}: another {key} than in {other} would give the arms of that file other "
                f"run.steps than their runs have; set {key} there, or make this file like none"
            )
    for key in ("base", "runs", "results"):
        if key in parent:
            parent[key] = str((other.parent / str(parent[key])).resolve())
    common = parent.get("set", {})
    here = {**common, **raw.get("set", {})}
    arms = {name: {**common, **(arm or {})} for name, arm in parent.get("arms", {}).items()}
    own = {name: {**here, **(arm or {})} for name, arm in raw.get("arms", {}).items()}
    joined = {
        **parent,
        **raw,
        "set": {},  # written into the arms, since the two files' arms differ in it
        "arms": {**arms, **own},
        "columns": {**parent.get("columns", {}), **raw.get("columns", {})},
        "controls": [*parent.get("controls", []), *raw.get("controls", [])],
    }
    return joined, {name: str(parent.get("name")) for name in arms if name not in own}


def slug_of(arm: str) -> str:
    """An arm's name as a folder's: "log-ratio, H 1" → "log-ratio-h-1"."""
    return re.sub(r"[^\w.]+", "-", arm.lower()).strip("-._")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f" (there are: {', '.join(known)})"


def short_path(path: Path) -> Path:
    """The same place, relative to the current folder where it lies below it."""
    absolute, here = path.resolve(), Path.cwd().resolve()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML would drop the first arm of a name in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


def _explain(problem: Any) -> str:
    location = problem["loc"]
    place = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        inside: dict[str, type[Section]] = {"columns": Column, "plot": Plot}
        fields = inside.get(str(location[0]), Experiment).model_fields
        return f"  {place}: no such field{nearest(str(location[-1]), fields)}"
    if problem["type"] == "missing":
        return f"  {place}: required and not given"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":  # says itself what it is about
        return f"  {place}: {message}" if place else f"  {message}"
    return f"  {place}: {message} (given: {problem['input']!r})"
