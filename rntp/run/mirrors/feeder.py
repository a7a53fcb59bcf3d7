"""The thread that reads metrics.jsonl and feeds one tracker."""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rntp.run.mirrors.protocol import Tracker
from rntp.run.tail import Tail

Opening = Callable[[Callable[[str], None]], Tracker]

RETRY_S = 5.0
_LONGEST_RETRY_S = 300.0
_ROWS_AT_ONCE = 64


class Feeder:
    """Sends every step of metrics.jsonl to a tracker once, in order.

    Steps that the tracker already has are not sent again: after a resume that runs some steps anew
    it keeps the values it had. A tracker that fails is tried again, later and later, and is sent
    what it missed.
    """

    def __init__(self, name: str, opening: Opening, metrics: Path) -> None:
        """opening(say): opens the tracker; may raise anything."""
        self.name = name
        self._opening = opening
        self._metrics = metrics
        self._tail = Tail(metrics)
        self._tracker: Tracker | None = None
        self._last = 0
        self._failures = 0
        self._exit_code: int | None = None
        self._wakes = threading.Event()
        self._notes: deque[str] = deque()
        # A tracker that hangs must not keep the program alive.
        self._thread = threading.Thread(target=self._work, name=f"mirror-{name}", daemon=True)

    def wake(self) -> None:
        """Look for new steps soon; the first call starts the thread."""
        if self._thread.ident is None:
            self._thread.start()
        if not self._failures:  # its next try has its time
            self._wakes.set()

    def notes(self) -> list[str]:
        """Take the lines that people should read."""
        found = []
        while self._notes:
            found.append(self._notes.popleft())
        return found

    def close(self, exit_code: int) -> None:
        """Ask for an end after what is left has been sent."""
        self._exit_code = exit_code
        self._wakes.set()

    def wait(self, seconds: float) -> None:
        """Wait for the end; a tracker that takes longer is left, and a note says so."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._notes.append(self._behind("takes too long and is not waited for"))

    def _work(self) -> None:
        while True:
            self._wakes.wait(self._pause())
            self._wakes.clear()
            ends = self._exit_code is not None  # before the last look, so that nothing is missed
            try:
                self._send()
                if ends and self._tracker is not None:
                    self._tracker.close(self._exit_code or 0)
            except Exception as error:  # whatever a tracker raises, the run goes on
                self._fail(error, ends)
            else:
                if self._failures:
                    self._notes.append(f"the mirror {self.name} works again and has all steps")
                self._failures = 0
            if ends:
                return

    def _pause(self) -> float | None:
        if not self._failures:
            return None
        return min(RETRY_S * 2 ** (self._failures - 1), _LONGEST_RETRY_S)

    def _send(self) -> None:
        if self._tracker is None:
            self._tracker = self._opening(self._notes.append)
            self._last = self._tracker.last_step()
        while rows := self._tail.read():
            new = [row for row in rows if self._is_new(row)]
            for first in range(0, len(new), _ROWS_AT_ONCE):
                part = new[first : first + _ROWS_AT_ONCE]
                self._tracker.write(part)
                self._last = part[-1]["step"]

    def _is_new(self, row: dict) -> bool:
        step = row.get("step")
        return isinstance(step, int) and step > self._last

    def _fail(self, error: Exception, ends: bool) -> None:
        self._failures += 1
        self._tracker, self._tail = None, Tail(self._metrics)
        said = f"failed ({type(error).__name__}: {str(error)[:500]})"
        if ends:
            self._notes.append(self._behind(said))
        elif self._failures == 1:
            self._notes.append(self._behind(f"{said} and is tried again now and then"))

    def _behind(self, what: str) -> str:
        return (
            f"the mirror {self.name} {what}; it has the steps up to {self._last}, metrics.jsonl "
            "has all, and a resumed run sends the rest"
        )
