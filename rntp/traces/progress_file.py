"""Rows of a long work, kept line by line, so that the same command goes on after a kill."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rntp.errors import ConfigError


class ProgressFile:
    """Rows of JSON in a file whose first line says of what they are.

    facts: what decides about the rows. A line that a kill has torn is cut off. Raises ConfigError
    where the file is of other facts.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path = path
        canonical = json.dumps(facts, sort_keys=True)
        head = json.dumps({"of": hashlib.sha256(canonical.encode()).hexdigest()}) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if not whole:
            path.write_text(head, encoding="utf-8")
        elif whole[0] != head:
            raise ConfigError(
                f"{path} was left by the same command with other settings; delete it, or take the "
                "settings of before"
            )
        elif whole != lines:
            path.write_text("".join(whole), encoding="utf-8")
        self._rows = max(len(whole) - 1, 0)

    def __len__(self) -> int:
        """Rows that are there."""
        return self._rows

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is in the file when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._rows += 1

    def read(self) -> list[dict[str, Any]]:
        """All rows, in order."""
        lines = self._path.read_text(encoding="utf-8").split("\n")[1:-1]
        return [json.loads(line) for line in lines]

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self._path.unlink()
