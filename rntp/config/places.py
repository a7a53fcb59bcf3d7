"""Where something lies: a folder, the URL of a store, or what `data.source` names besides."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

TASK = "task:"


def folder_or_url(value: object) -> object:
    """Make a path of what is neither a URL, nor a name on a hub, nor tasks."""
    named = isinstance(value, str) and ("://" in value or value.startswith(("hf:", TASK)))
    return Path(value) if isinstance(value, str) and not named else value


def is_task(source: object) -> bool:
    """Tell whether `data.source`, or a part of it, names tasks."""
    return isinstance(source, str | Path) and str(source).startswith(TASK)


def sources(source: Any) -> Iterable[object]:
    """List what `data.source` names: one, or the parts of a mixture."""
    return source if isinstance(source, dict) else (source,)
