"""Packages of the extras, loaded when something needs them."""

import importlib
from types import ModuleType

from rntp.errors import ConfigError

# Packages that are not of the extra `prep`.
_EXTRAS = {
    "datasets": "hf",
    "pyarrow": "parquet",
    "ray": "ray",
    "spacy": "filters",
    "trafilatura": "prep-hq",
}


def module(name: str) -> ModuleType:
    """Import a module of one of the extras. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"reading and preparing pages needs {package}, which is not installed; "
            f"`pip install 'rntp[{_EXTRAS.get(package, 'prep')}]'`"
        ) from error
