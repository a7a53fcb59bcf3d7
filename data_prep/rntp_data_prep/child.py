"""Pages to texts in a process of its own, that may be slow, run out of memory or crash.

Signals do not reach into C code, so a page that takes too long is ended with its process, and the
next page has a new one. What is limited is the processor's time and not the clock's: whether a
page is kept should not depend on what else a machine does. The child ends with its parent: its
input closes.
"""

import contextlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import weakref
from typing import IO, Any

from rntp.errors import ConfigError
from rntp_data_prep.extract import Unextractable

LIMIT_S, LIMIT_S_A_MB = 2.0, 1.0
"""What a page may take, and what more for each of its megabytes: seconds of the processor."""

_START_S = 120.0  # for the imports of a new process, on a busy machine
_CLOCK = 60.0  # times its limit, by the clock: a process that takes no time at all
_MAX_BYTES = 4 << 30
_LENGTH = struct.Struct("<I")
_ENDED_BY = {-signal.SIGPROF: "extraction_timeout", -signal.SIGKILL: "extraction_failed"}


class Cleaner:
    """`rntp_data_prep.clean.cleaned`, with a limit. It can be pickled as long as it was not called.

    extractor: as of a preparation's config. limit_s: seconds that one page may take; None for
    LIMIT_S and LIMIT_S_A_MB.
    """

    def __init__(self, extractor: str = "resiliparse", limit_s: float | None = None) -> None:
        self._extractor, self._limit_s = extractor, limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, raw: str, *, is_html: bool, title: str = "") -> tuple[str, str, int]:
        """(title, text, neutralised markers). Raises Unextractable: "extraction_timeout", or
        "extraction_failed" where the child died twice, or what the extractor said; ConfigError
        where a package is not installed.
        """
        data = raw.encode("utf-8", "surrogatepass")
        limit_s = self._limit_s or LIMIT_S + LIMIT_S_A_MB * len(data) / 1e6
        head = json.dumps([is_html, title, limit_s]).encode()
        for is_last in (False, True):
            try:
                found, text, neutralised, reason = self._ask(head, data, limit_s)
                break
            except TimeoutError as error:
                self.close()
                raise Unextractable("extraction_timeout") from error
            except (BrokenPipeError, EOFError) as error:
                reason = self._reason()
                self.close()
                # A process may be ended by others, for want of memory: that is not the page's doing.
                if is_last or reason == "extraction_timeout":
                    raise Unextractable(reason) from error
        if reason:
            raise Unextractable(reason)
        return found, text, neutralised

    def close(self) -> None:
        """End the process; a later call starts another."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _ask(self, head: bytes, data: bytes, limit_s: float) -> list[Any]:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        _send(self._process.stdin, head)
        _send(self._process.stdin, data)
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
        weakref.finalize(self, _end, process)
        self._process = process
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
        (length,) = _LENGTH.unpack(self._bytes(_LENGTH.size, end))
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


def main() -> None:
    """The child: pages in, [title, text, neutralised markers, reason] out, until its input ends."""
    from rntp_data_prep.clean import cleaned
    from rntp_data_prep.extract import extractors

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    try:
        extractor = extractors(sys.argv[1])
    except ConfigError as error:
        _send(answers, json.dumps(["", "", 0, str(error)]).encode())
        return
    _send(answers, json.dumps(["", "", 0, ""]).encode())
    while head := _receive(sys.stdin.buffer):
        is_html, title, limit_s = json.loads(head)
        raw = _receive(sys.stdin.buffer).decode("utf-8", "surrogatepass")
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # nothing handles its signal, which ends this
        try:
            answer = [*cleaned(raw, is_html=is_html, title=title, extractor=extractor), ""]
        except Unextractable as error:
            answer = ["", "", 0, error.reason]
        except Exception:  # of a library, over a page that nobody has seen
            answer = ["", "", 0, "extraction_failed"]
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(answers, json.dumps(answer).encode())


def _send(file: IO[bytes], payload: bytes) -> None:
    file.write(_LENGTH.pack(len(payload)) + payload)
    file.flush()


def _receive(file: IO[bytes]) -> bytes:
    """What `_send` sent; nothing where the other side has closed."""
    size = file.read(_LENGTH.size)
    return file.read(_LENGTH.unpack(size)[0]) if len(size) == _LENGTH.size else b""


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for file in (process.stdin, process.stdout):
        if file is not None:
            with contextlib.suppress(BrokenPipeError):  # what it was not sent
                file.close()


if __name__ == "__main__":
    main()
