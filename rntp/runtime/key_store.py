"""JSON by key on the disk, which a resumed run reads again: what came from outside, and may come
otherwise the next time.

One file a rank, so that no two processes write the same; all of a folder are read.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rntp.errors import RntpError

_TABLE = "CREATE TABLE IF NOT EXISTS calls (key BLOB PRIMARY KEY, outcome TEXT) WITHOUT ROWID"

# Values that are held beside those on the disk.
_MOST_IN_MEMORY = 10_000


def key_of(*facts: object) -> bytes:
    """Hash what decides about a value: 20 bytes."""
    canonical = json.dumps(facts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=20).digest()


class KeyStore:
    """`get` what `put` has stored, in this process or in one before it. What is there stays.

    folder: of the run; None keeps all in memory. A file that is damaged, or that cannot be written,
    raises RntpError with the remedy.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self._memory: dict[bytes, dict[str, Any]] = {}
        self._own: sqlite3.Connection | None = None
        self._others: list[sqlite3.Connection] = []
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"calls-{rank}.sqlite"
        self._own = _open(own)
        self._others = [_open(path) for path in sorted(folder.glob("calls-*.sqlite"))]

    def get(self, key: bytes) -> dict[str, Any] | None:
        """What was stored under a key before, or None."""
        if key in self._memory:
            return self._memory[key]
        for connection in self._others:
            row = connection.execute("SELECT outcome FROM calls WHERE key = ?", (key,)).fetchone()
            if row is not None:
                self._memory[key] = json.loads(row[0])
                return self._memory[key]
        return None

    def own(self) -> Iterator[dict[str, Any]]:
        """All values that this rank has stored, in this process or in one before it."""
        if self._own is None:
            yield from self._memory.values()
            return
        for (value,) in self._own.execute("SELECT outcome FROM calls"):
            yield json.loads(value)

    def put(self, values: Mapping[bytes, dict[str, Any]]) -> None:
        """Store values, all or none of them; they are on the disk when this returns."""
        if self._own is not None and len(self._memory) > _MOST_IN_MEMORY:
            self._memory.clear()
        self._memory |= values
        if self._own is None or not values:
            return
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        try:
            with self._own:
                self._own.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise RntpError(
                f"what was asked for cannot be stored ({error}); free space in the run folder, or "
                "check that it can be written, and start the same command again"
            ) from error

    def close(self) -> None:
        """Close the files."""
        for connection in (*self._others, *([self._own] if self._own else [])):
            connection.close()
        self._own, self._others = None, []


def _open(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=60.0, check_same_thread=False)
        # A shared disk has no shared memory for a write-ahead log: the plain journal works on all.
        connection.execute("PRAGMA journal_mode=TRUNCATE")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(_TABLE)
        connection.commit()
    except sqlite3.Error as error:
        raise RntpError(
            f"{path} cannot be used ({error}); delete it: the calls in it are made again"
        ) from error
    return connection
