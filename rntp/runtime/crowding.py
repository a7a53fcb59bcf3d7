"""How crowded the processor is: of the time that a thread could run, the share in which it did.

Other programs on the same cores make every second of a step longer. Linux counts, for each thread,
how long it ran and how long it was ready and waited for a core.
"""

from pathlib import Path

_SCHEDULED = Path("/proc/thread-self/schedstat")


def ran_and_waited() -> tuple[float, float] | None:
    """Seconds that this thread has run, and that it was ready and waited for a core, since it
    began; None where the system does not count them."""
    try:
        ran, waited, _ = map(int, _SCHEDULED.read_text().split())
    except (OSError, ValueError):
        return None
    return ran * 1e-9, waited * 1e-9


class Crowding:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._start = ran_and_waited()

    @property
    def share(self) -> float | None:
        """Return the time that this thread ran over the time that it could have: 1 on cores of
        its own; None where the system does not count."""
        now = ran_and_waited()
        if now is None or self._start is None:
            return None
        ran, waited = (after - before for after, before in zip(now, self._start, strict=True))
        return ran / (ran + waited) if ran > 0 else 1.0
