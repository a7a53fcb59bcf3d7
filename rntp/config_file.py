"""Config files: YAML sections, over those of the file named by `base:`."""

from pathlib import Path
from typing import Any

import yaml

from rntp.errors import ConfigError


def read(path: Path) -> object:
    """The sections of a file; where it names a `base`, laid over those of that file.

    base: a path relative to the file that names it. A field that both have is this file's. Raises
    ConfigError for what is missing, is not YAML, or is its own base.
    """
    chain = [path.resolve()]
    raw = _load(path)
    while isinstance(raw, dict) and "base" in raw:
        base = chain[-1].parent / str(raw["base"])
        if base.resolve() in chain:
            raise ConfigError(f"{path}: {base} is a base of itself; take one `base:` away")
        chain.append(base.resolve())
        below = _load(base)
        if not isinstance(below, dict):
            return below
        raw = _over(below, {name: value for name, value in raw.items() if name != "base"})
    return raw


def own_fields(path: Path) -> dict[str, Any]:
    """{section.field: value} of what the file sets itself, `base` and the section run left out."""
    raw = _load(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections such as `reward:`")
    sections = {name: fields for name, fields in raw.items() if name not in ("base", "run")}
    wrong = [name for name, fields in sections.items() if not isinstance(fields, dict)]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]} is not a section")
    return {f"{name}.{key}": v for name, fields in sections.items() for key, v in fields.items()}


def _load(path: Path) -> object:
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Section by section, field by field; what is no section is left to the validation."""
    joined = dict(below)
    for name, fields in above.items():
        both = isinstance(fields, dict) and isinstance(below.get(name), dict)
        joined[name] = {**below[name], **fields} if both else fields
    return joined
