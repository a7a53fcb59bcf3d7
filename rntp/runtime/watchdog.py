"""A second process that notices when this one does nothing any more, and ends it with a reason.

The training process tells it over a pipe what it does; the watchdog writes that to
heartbeat/rank_R.json, for people and other programs. If nothing comes for NOTICE_S seconds, it has
the stacks of all threads written to stacks/rank_R.txt and names rank and phase on the console, once
a phase; after `run.timeouts_s.hang` it does so again and kills the process. A thread could not:
code that keeps the interpreter's lock stops it as well. A rank that waits for others is not silent.
"""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rntp.runtime import watchdog_process

NOTICE_S = 45.0
_SIGNAL = signal.SIGUSR2


class Watchdog:
    """Use it as a context manager; `beat` while there is life. timeout_s 0: nobody watches."""

    def __init__(self, run_dir: Path, timeout_s: float, rank: int = 0) -> None:
        self._folder = run_dir
        self._timeout_s = timeout_s
        self._rank = rank
        self._now: dict[str, object] = {"phase": "start", "step": 0, "ordinal": 0, "waits": False}
        self._sent_s = -1.0
        self._process: subprocess.Popen | None = None
        self._stacks: TextIO | None = None

    def __enter__(self) -> Self:
        if self._timeout_s == 0:
            return self
        heartbeat = self._folder / "heartbeat" / f"rank_{self._rank}.json"
        stacks = self._folder / "stacks" / f"rank_{self._rank}.txt"
        for path in (heartbeat, stacks):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = stacks.open("a", encoding="utf-8")  # a restart keeps what ended the last
        # The handler is in C: it runs whatever the interpreter is stuck in.
        faulthandler.register(_SIGNAL, self._stacks, all_threads=True)
        facts = {
            "rank": self._rank,
            "notice_s": min(NOTICE_S, self._timeout_s / 2),
            "timeout_s": self._timeout_s,
            "heartbeat": str(heartbeat),
            "stacks": str(stacks),
            "signal": int(_SIGNAL),
        }
        command = [sys.executable, "-I", "-S", watchdog_process.__file__, json.dumps(facts)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self.heartbeat("start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # which ends it
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:  # no run fails for a guard that is slow to leave
                self._process.kill()
            self._process = None
        if self._stacks is None:
            return
        faulthandler.unregister(_SIGNAL)
        self._stacks.close()
        path = Path(self._stacks.name)
        if path.stat().st_size == 0:
            path.unlink()
        with contextlib.suppress(OSError):  # that of another rank is there, or it was quicker
            path.parent.rmdir()

    def heartbeat(
        self, phase: str | None = None, step: int | None = None, ordinal: int | None = None
    ) -> None:
        """A sign of life; what is given has changed. Cheap: it may be called for every token."""
        if self._process is None:
            return
        given = {"phase": phase, "step": step, "ordinal": ordinal}
        changed = {k: v for k, v in given.items() if v is not None and v != self._now[k]}
        now_s = time.monotonic()
        if not changed and now_s - self._sent_s < min(1.0, self._timeout_s / 10):
            return
        self._now |= changed
        self._sent_s = now_s
        self._send()

    @contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """While open, this rank waits for others, which has a deadline of its own."""
        self._now["waits"] = True
        self._send()
        try:
            yield
        finally:
            self._now["waits"] = False
            self._send()

    def _send(self) -> None:
        if self._process is None:
            return
        line = json.dumps({**self._now, "time": round(time.time(), 3), "pid": os.getpid()}) + "\n"
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), line.encode())
        except BlockingIOError:
            pass  # it is behind with reading, and knows by what is in the pipe that there is life
        except BrokenPipeError:
            # Somebody killed it. The run is worth more than its guard.
            print("rntp: the watchdog is gone; the run goes on without it", file=sys.stderr)
            self._process = None
