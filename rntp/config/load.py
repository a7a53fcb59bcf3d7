"""From files and overrides to validated sections, and from what is wrong to what to do.

An unknown key is an error that names the nearest field.
"""

import copy
import difflib
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from rntp.config import files
from rntp.config.renamed import move_renamed
from rntp.errors import ConfigError

Sections = TypeVar("Sections", bound=BaseModel)


def parse(
    cls: type[Sections], raw: object, overrides: Sequence[str], source: str
) -> tuple[Sections, list[str]]:
    """Validate a nested dict with `section.field=value` laid over it; also a line for each old
    name.

    Old names of fields are moved to the new ones first; see `rntp.config.renamed`.
    Raises ConfigError with one line a mistake.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected sections such as `run:` and `model:`")
    raw = copy.deepcopy(raw)
    for override in overrides:
        _apply_override(raw, override)
    renamed = move_renamed(raw)
    try:
        return cls.model_validate(raw), renamed
    except ValidationError as error:
        sections = _sections(cls)
        lines = [_explain(problem, sections, cls) for problem in error.errors()]
        raise ConfigError("\n".join([f"{source} cannot be used:", *lines])) from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *path, field = name.strip().split(".")
    if not (equals and path and field and all(path)):
        raise ConfigError(f"--set wants section.field=value, not {override!r}")
    value = files.parse_yaml(text, f"--set {override}: the value")
    held = raw
    for depth, part in enumerate(path, start=1):
        if not isinstance(held.setdefault(part, {}), dict):
            raise ConfigError(f"--set {override}: {'.'.join(path[:depth])} is not a section")
        held = held[part]
    held[field] = value


def _sections(cls: type[BaseModel]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, field in cls.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        found[name] = set(section.model_fields)
    return found


_TRUNCATIONS = ("top_p", "top_k", "min_p")


def _explain(problem: Any, sections: dict[str, set[str]], cls: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and problem["loc"][-1] in _TRUNCATIONS:
        return (
            f"  {place}: sampling in training is never truncated, because the truncated "
            "distribution is not the policy whose gradient is taken; take it away, and use "
            "thought.temperature, which sampler and policy share"
        )
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) > 2:
        return f"  {place}: no such name{_suggest_within(problem['loc'], cls)}"
    if problem["type"] == "extra_forbidden":
        return f"  {place}: no such {_suggest(problem['loc'], sections)}"
    if problem["type"] == "missing":
        return f"  {place}: required and not given"
    message = problem["msg"].removeprefix("Value error, ")
    return f"  {place}: {message} (given: {problem['input']!r})" if place else f"  {message}"


def _suggest_within(location: tuple[Any, ...], cls: type[BaseModel]) -> str:
    """The nearest name, or all, of the model that stands at the place in front of the last name."""
    for name in location[:-1]:
        field = cls.model_fields.get(str(name))
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return ""
        cls = models[0]
    near = difflib.get_close_matches(str(location[-1]), cls.model_fields, n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f" (there are: {', '.join(sorted(cls.model_fields))})"


def _suggest(location: tuple[Any, ...], sections: dict[str, set[str]]) -> str:
    if len(location) == 1:
        near = difflib.get_close_matches(str(location[0]), sections, n=1)
        return "section" + (
            f"; did you mean `{near[0]}:`?" if near else f" (there are: {', '.join(sections)})"
        )
    section, field = str(location[0]), str(location[1])
    elsewhere = [name for name, fields in sections.items() if field in fields]
    if elsewhere:
        return f"field; `{field}` belongs under `{elsewhere[0]}:`"
    near = difflib.get_close_matches(field, sections[section], n=1)
    if near:
        return f"field; did you mean `{section}.{near[0]}`?"
    near = difflib.get_close_matches(
        field, {f for fields in sections.values() for f in fields}, n=1
    )
    if near:
        home = next(name for name, fields in sections.items() if near[0] in fields)
        return f"field; did you mean `{home}.{near[0]}`?"
    return f"field (`{section}:` has: {', '.join(sorted(sections[section]))})"
