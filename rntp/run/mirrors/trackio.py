"""Metrics in a local trackio database, for `trackio show`; `trackio sync` takes it to a Space.

By trackio's storage and not by its `init` and `log`: those print to the console of the run, send
from a thread of their own, and keep to themselves what has failed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from rntp.config.mirrors import Trackio
from rntp.run.mirrors.protocol import Row, RunFacts, numbers


class TrackioDatabase:
    """A run in the database of its project."""

    def __init__(self, facts: RunFacts, project: str) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self._storage: Any = SQLiteStorage
        self._facts = facts
        self._project = project

    def last_step(self) -> int:
        found = self._storage.get_last_step(self._project, run_id=self._facts.id)
        return found or 0

    def write(self, rows: Sequence[Row]) -> None:
        self._storage.bulk_log(
            self._project,
            self._facts.name,
            [numbers(row) for row in rows],
            steps=[row["step"] for row in rows],
            # One for each step: a batch that arrives twice is one batch.
            log_ids=[f"{self._facts.id}-{row['step']}" for row in rows],
            config=self._facts.config,
            run_id=self._facts.id,
        )

    def close(self, exit_code: int) -> None: ...


def open_tracker(facts: RunFacts, settings: Trackio, say: Callable[[str], None]) -> TrackioDatabase:
    """Open the project's database; it is made with the first step."""
    return TrackioDatabase(facts, settings.project)
