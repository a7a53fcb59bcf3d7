"""Outcomes of calls on the disk, by what the calls were: a resumed run replays them.

A call is a function of its key, but for a limit of seconds that it may meet or not. So whatever a
run has read once is what it reads again.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rntp.runtime.key_store import KeyStore
from rntp.tools.page import Outcome


class Cache:
    """`get` what `put` has stored. Arguments and errors are those of the
    `rntp.runtime.key_store.KeyStore` behind it."""

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self._store = KeyStore(folder, rank)

    def get(self, key: bytes) -> Outcome | None:
        """The outcome of a call that was made before, or None."""
        found = self._store.get(key)
        return None if found is None else Outcome(**found)

    def put(self, outcomes: Mapping[bytes, Outcome]) -> None:
        """Store outcomes, all or none of them; they are on the disk when this returns."""
        self._store.put({key: asdict(outcome) for key, outcome in outcomes.items()})

    def close(self) -> None:
        """Close the files."""
        self._store.close()
