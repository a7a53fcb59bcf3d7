"""Pages to texts in a process of its own, that may be slow, run out of memory or crash.

Signals do not reach into C code, so a page that takes too long is ended with its process, and the
next page has a new one. What is limited is the processor's time and not the clock's: whether a
page is kept should not depend on what else a machine does. The child ends with its parent: its
input closes.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from functools import cache
from threading import Lock
from typing import Any

from rntp.errors import ConfigError
from rntp_data_prep.extract import Unextractable
from rntp_data_prep.frames import LENGTH, send

LIMIT_S, LIMIT_S_A_MB = 2.0, 1.0
"""What a page may take, and what more for each of its megabytes: seconds of the processor."""

_START_S = 120.0  # for the imports of a new process, on a busy machine
_CLOCK = 60.0  # times its limit, by the clock: a process that takes no time at all
_ENDED_BY = {-signal.SIGPROF: "extraction_timeout", -signal.SIGKILL: "extraction_failed"}


class Cleaner:
    """`rntp_data_prep.clean.cleaned`, with a limit, for any number of threads.

    extractor: as of a preparation's config. limit_s: seconds that one page may take; None for
    LIMIT_S and LIMIT_S_A_MB.
    """

    def __init__(self, extractor: str = "resiliparse", limit_s: float | None = None) -> None:
        self._extractor, self._limit_s = extractor, limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()
        self._owner = 0  # process that started it: what a fork inherits belongs to another

    def __call__(self, raw: str, *, is_html: bool, title: str = "") -> tuple[str, str, int]:
        """(title, text, neutralised markers). Raises Unextractable: "extraction_timeout", or
        "extraction_failed" where the child died twice, or what the extractor said; ConfigError
        where a package is not installed.
        """
        with self._lock:
            return self._cleaned(raw, is_html, title)

    def _cleaned(self, raw: str, is_html: bool, title: str) -> tuple[str, str, int]:
        data = raw.encode("utf-8", "surrogatepass")
        limit_s = self._limit_s or LIMIT_S + LIMIT_S_A_MB * len(data) / 1e6
        head = json.dumps([is_html, title, limit_s]).encode()
        for is_last in (False, True):
            if self._owner != os.getpid():
                self._process = None
            try:
                found, text, neutralised, reason = self._ask(head, data, limit_s)
                break
            except TimeoutError as error:
                self.close()
                raise Unextractable("extraction_timeout") from error
            except (BrokenPipeError, EOFError) as error:
                reason = self._reason()
                self.close()
                # Others may end a process, for want of memory: that is not the page's doing.
                if is_last or reason == "extraction_timeout":
                    raise Unextractable(reason) from error
            except BaseException:
                self.close()  # an answer that nobody has read would be taken for the next page's
                raise
        if reason:
            raise Unextractable(reason)
        return found, text, neutralised

    def close(self) -> None:
        """End the process; a later call starts another."""
        if self._process is not None:
            _end(self._process, os.getpid())
            self._process = None

    def _ask(self, head: bytes, data: bytes, limit_s: float) -> list[Any]:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        send(self._process.stdin, head)
        send(self._process.stdin, data)
        return self._answer(limit_s * _CLOCK)

    def _reason(self) -> str:
        """Why the process has ended, or is about to."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        return _ENDED_BY.get(self._process.returncode or 0, "extraction_failed")

    def _start(self) -> None:
        command = [sys.executable, "-m", "rntp_data_prep.child", self._extractor]
        # A session of its own: what a terminal or a scheduler sends to stop a run is the parent's
        # to act upon, and no page's fault.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        weakref.finalize(self, _end, process, os.getpid())
        self._process, self._owner = process, os.getpid()
        try:
            *_, reason = self._answer(_START_S)
        except (EOFError, TimeoutError) as error:
            self.close()
            raise ConfigError(
                "the process that extracts pages did not start; its output above says why"
            ) from error
        if reason:
            self.close()
            raise ConfigError(reason)

    def _answer(self, limit_s: float) -> list[Any]:
        """Raises TimeoutError, and EOFError where the process has ended."""
        end = time.monotonic() + limit_s
        (length,) = LENGTH.unpack(self._bytes(LENGTH.size, end))
        answer: list[Any] = json.loads(self._bytes(length, end))
        return answer

    def _bytes(self, count: int, end: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, parts = self._process.stdout.fileno(), bytearray()
        while len(parts) < count:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(descriptor, min(1 << 20, count - len(parts)))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


@cache
def shared_cleaner(extractor: str = "resiliparse", limit_s: float | None = None) -> Cleaner:
    """The cleaner that all of a process' threads and readers share, since each costs the start of
    another process."""
    return Cleaner(extractor, limit_s)


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if owner != os.getpid():
        return  # a fork's end is not its parent's
    process.kill()
    process.wait()
    for file in (process.stdin, process.stdout):
        if file is not None:
            with contextlib.suppress(BrokenPipeError):  # what it was not sent
                file.close()
