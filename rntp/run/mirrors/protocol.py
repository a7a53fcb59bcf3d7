"""What a tracker is to the thread that feeds it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Which run it is. id: the same after a resume. config: resolved, without secrets."""

    run_dir: Path
    name: str
    id: str
    config: dict[str, Any]


class Tracker(Protocol):
    """An open run in a tracker. All calls come from one thread, and any may raise anything: the
    tracker is then opened anew and asked again for its last step."""

    def last_step(self) -> int:
        """Return the last step that the tracker has; 0 where it has none."""
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Send steps, in order; each row holds `step`. They are there when this returns."""
        ...

    def close(self, exit_code: int) -> None:
        """Finish the run. exit_code: the program's; 5 is a run that will be resumed."""
        ...


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row, without `step`: what every tracker can draw."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "step"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }
