"""Where something lies: a folder, or the URL of a store."""

from pathlib import Path


def folder_or_url(value: object) -> object:
    """Make a path of what is neither a URL nor a name on a hub."""
    is_path = isinstance(value, str) and "://" not in value and not value.startswith("hf:")
    return Path(str(value)) if is_path else value
