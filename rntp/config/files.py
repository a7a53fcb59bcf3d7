"""Config files: YAML sections, over those of the file named by `base:`."""

from pathlib import Path
from typing import Any

import yaml

from rntp.errors import ConfigError

# Far above what any config holds, and far below what takes a second.
MOST_NODES = 100_000
MOST_DEPTH = 50


def parse_yaml(text: str, source: str) -> object:
    """Parse YAML of a size that a config may have. source: what messages call it.

    Raises ConfigError where it is no YAML, or is nested too deeply, or holds too much once its
    aliases are written out, which a few lines can make exceed any memory.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply to be a config") from error
    if _size(found, source, {}, 0) > MOST_NODES:
        raise ConfigError(
            f"{source} holds more than {MOST_NODES} values once its aliases (*name) are written "
            "out; no config does, so take the aliases away"
        )
    return found


def _size(node: object, source: str, known: dict[int, int], depth: int) -> int:
    """Count the values of a node with all that aliases repeat, each node looked at once."""
    if not isinstance(node, dict | list):
        return 1
    if depth > MOST_DEPTH:
        raise ConfigError(f"{source} is nested more than {MOST_DEPTH} levels deep; no config is")
    if id(node) not in known:
        known[id(node)] = 0  # an alias of itself is met here again
        children = [*node.keys(), *node.values()] if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_size(c, source, known, depth + 1) for c in children)
    elif known[id(node)] == 0:
        raise ConfigError(f"{source} holds an alias of what it is part of; take it away")
    return known[id(node)]


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
    seen, found = [path.resolve()], [load_yaml(path)]
    while isinstance(found[-1], dict) and "base" in found[-1]:
        base = seen[-1].parent / str(found[-1]["base"])
        if base.resolve() in seen:
            raise ConfigError(f"{path}: {base} is a base of itself; take one `base:` away")
        seen.append(base.resolve())
        found.append(load_yaml(base))
    return found


def _joined(chain: list[object]) -> dict[str, Any]:
    """The sections of a chain, the first over the last, without the key `base`."""
    joined: dict[str, Any] = {}
    for sections in reversed(chain):
        if not isinstance(sections, dict):
            raise ConfigError("expected sections such as `reward:` in a config file")
        joined = _over(joined, {name: v for name, v in sections.items() if name != "base"})
    return joined


def load_yaml(path: Path, kind: str = "config file") -> object:
    """Read a YAML file of a config's size. kind: what messages call it. Raises as `parse_yaml`."""
    if not path.is_file():
        raise ConfigError(f"there is no {kind} {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    return parse_yaml(text, str(path))


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Section by section, field by field; what is no section is left to the validation."""
    joined = dict(below)
    for name, fields in above.items():
        both = isinstance(fields, dict) and isinstance(below.get(name), dict)
        joined[name] = {**below[name], **fields} if both else fields
    return joined
