"""Outcomes of calls on the disk, by what the calls were: a resumed run replays them.

A call is a function of its key, but for a limit of seconds that it may meet or not. So whatever a
run has read once is what it reads again. One file a rank, so that no two processes write the same;
all of a folder are read.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rntp.errors import RntpError
from rntp.tools.page import Outcome

_TABLE = "CREATE TABLE IF NOT EXISTS calls (key BLOB PRIMARY KEY, outcome TEXT) WITHOUT ROWID"

# Outcomes that are held beside those on the disk.
_MOST_IN_MEMORY = 10_000


def key_of(*facts: object) -> bytes:
    """Hash what decides about an outcome: 20 bytes."""
    canonical = json.dumps(facts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=20).digest()


class Cache:
    """`get` what `put` has stored, in this process or in one before it.

    folder: of the run; None keeps all in memory. A file that is damaged, or that cannot be written,
    raises RntpError with the remedy.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self._memory: dict[bytes, Outcome] = {}
        self._own: sqlite3.Connection | None = None
        self._others: list[sqlite3.Connection] = []
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"calls-{rank}.sqlite"
        self._own = _open(own)
        self._others = [_open(path) for path in sorted(folder.glob("calls-*.sqlite"))]

    def get(self, key: bytes) -> Outcome | None:
        """The outcome of a call that was made before, or None."""
        if key in self._memory:
            return self._memory[key]
        for connection in self._others:
            row = connection.execute("SELECT outcome FROM calls WHERE key = ?", (key,)).fetchone()
            if row is not None:
                self._memory[key] = Outcome(**json.loads(row[0]))
                return self._memory[key]
        return None

    def put(self, outcomes: Mapping[bytes, Outcome]) -> None:
        """Store outcomes, all or none of them; they are on the disk when this returns."""
        if self._own is not None and len(self._memory) > _MOST_IN_MEMORY:
            self._memory.clear()
        self._memory |= outcomes
        if self._own is None or not outcomes:
            return
        rows = [(key, json.dumps(asdict(outcome))) for key, outcome in outcomes.items()]
        try:
            with self._own:
                self._own.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise RntpError(
                f"outcomes of tools cannot be stored ({error}); free space in the run folder, or "
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
