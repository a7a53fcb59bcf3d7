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
    *above, ground = _chain(path)
    if not above or not isinstance(ground, dict):
        return ground
    return _over(ground, _joined(above))


def method_fields(path: Path) -> dict[str, Any]:
    """{section.field: value} of what makes a method: all that the file and its bases set, less the
    last base, which knows of no other and holds model, data and sizes. The section run is left out.
    """
    chain = _chain(path)
    own = _joined(chain[:-1] if len(chain) > 1 else chain)
    sections = {name: fields for name, fields in own.items() if name != "run"}
    wrong = [name for name, fields in sections.items() if not isinstance(fields, dict)]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]} is not a section")
    return {f"{name}.{key}": v for name, fields in sections.items() for key, v in fields.items()}


def _chain(path: Path) -> list[object]:
    """The contents of the file, of its base, of its base's base, and so on."""
    seen, found = [path.resolve()], [_load(path)]
    while isinstance(found[-1], dict) and "base" in found[-1]:
        base = seen[-1].parent / str(found[-1]["base"])
        if base.resolve() in seen:
            raise ConfigError(f"{path}: {base} is a base of itself; take one `base:` away")
        seen.append(base.resolve())
        found.append(_load(base))
    return found


def _joined(chain: list[object]) -> dict[str, Any]:
    """The sections of a chain, the first over the last, without the key `base`."""
    joined: dict[str, Any] = {}
    for sections in reversed(chain):
        if not isinstance(sections, dict):
            raise ConfigError("expected sections such as `reward:` in a config file")
        joined = _over(joined, {name: v for name, v in sections.items() if name != "base"})
    return joined


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
