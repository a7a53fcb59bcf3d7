"""Rows as a Parquet file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rntp.errors import ConfigError


def check_parquet() -> None:
    """Raise ConfigError if the extra is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Parquet files need `pip install 'rntp[parquet]'`; or name the file .jsonl"
        ) from error


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `rows` to `path`, so that a reader finds the whole file or none."""
    import pyarrow
    import pyarrow.parquet

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
