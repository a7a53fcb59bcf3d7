"""The ledger of a growing corpus: JSON lines, from which everything is known again after a kill.

Rows, in order: `growth` (a command began: checkpoint, settings), `page` (chosen and asked for: why,
what it cost, the links found), `worth` (what the model made of the pages of a look), `segment` (the
growth's corpus), `weights` (the mixture; the growth is finished). A row is on the disk before the
next thing is done, and a line that a kill has torn is as if it had not been.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rntp.errors import DataError
from rntp.runtime.files import complete_lines, read_json_lines, write_bytes_atomic

FILE = "grow.jsonl"
Row = dict[str, Any]


class Ledger:
    """Rows that are kept in a file.

    Raises DataError where the file is damaged before its last line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = []
        if path.exists():
            try:
                self.rows = read_json_lines(path)
            except ValueError as error:
                raise DataError(f"{error}; restore the ledger from a copy") from error
            whole = b"".join(complete_lines(path))
            if len(whole) != path.stat().st_size:
                write_bytes_atomic(path, whole)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is on the disk when this returns."""
        line = json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        # As it will be read again.
        self.rows.append(json.loads(line))
