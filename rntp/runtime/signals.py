"""Stopping on request: SIGINT and SIGTERM raise a flag, and the work polls it."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Self

from rntp.errors import Preempted

SAME_REQUEST_S = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While the context is open, the first signal asks the run to stop; a second ends it at once.

    Signals within SAME_REQUEST_S are one request: Ctrl-C and schedulers signal every process of a
    job, and `torchrun` hands its signal on to the ranks that already have it.

    The command opens it before it loads anything, the trainer once more around its loop. Only the
    main thread can install handlers; elsewhere the context does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._received_s = 0.0
        self._previous: dict[signal.Signals, object] = {}
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self
        try:
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread
            self._previous.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise Preempted if a signal has come."""
        if self.received is not None:
            raise Preempted(f"stopped by {self.received}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.received is None:
            self.received, self._received_s = signal.Signals(number).name, now_s
        elif now_s - self._received_s >= SAME_REQUEST_S:
            os._exit(128 + number)  # committed checkpoints are whole, whatever is under way
