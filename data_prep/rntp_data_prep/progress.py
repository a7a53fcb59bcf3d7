"""Lines that say how far a preparation is, and how long the rest will take."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_PER_LINE = 5.0


class Pace:
    """The rest of a stage, from what was done since it began. done: share of it, 0 to 1."""

    def __init__(self, done: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done = done
        self._begin = clock()

    def eta(self, done: float) -> str:
        """`eta 3m20s`, or nothing as long as nothing is known."""
        passed, gained = self._clock() - self._begin, done - self._done
        if gained < 1e-9:  # shares of the work are sums of fractions
            return ""
        seconds = round(passed * max(0.0, 1 - done) / gained)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        if hours:
            return f"eta {hours}h{minutes:02d}m"
        return f"eta {minutes}m{seconds % 60:02d}s" if minutes else f"eta {seconds}s"

    def a_second(self, count: int) -> float:
        """`count` since the stage began, a second."""
        return count / max(self._clock() - self._begin, 1e-9)


def joined(*parts: str) -> str:
    """The parts that are not empty, with commas."""
    return ", ".join(filter(None, parts))


def weights(sources: list[str]) -> list[float]:
    """Share of the work in each source: its bytes; the mean of these where nobody knows."""
    sizes = [Path(s).stat().st_size if Path(s).is_file() else 0 for s in sources]
    known = [size for size in sizes if size]
    mean = sum(known) / len(known) if known else 1.0
    filled = [size or mean for size in sizes]
    return [size / sum(filled) for size in filled]


@contextmanager
def told(line: Callable[[], str], progress: Callable[[str], None]) -> Iterator[None]:
    """Says `line()` now and then, when it has changed."""
    ended = threading.Event()

    def tell() -> None:
        said = ""
        while not ended.wait(SECONDS_PER_LINE):
            if (now := line()) != said:
                said = now
                progress(now)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
