"""An extractor in a process of its own, that may be slow, run out of memory or crash.

Signals do not reach into C code, so a page that takes too long is ended with its process, and the
next page has a new one. The child ends with its parent: its input closes.
"""

import contextlib
import json
import os
import resource
import select
import struct
import subprocess
import sys
import time
import weakref
from typing import IO

from rntp.errors import ConfigError
from rntp_data_prep.extract import Unextractable

_START_S = 120.0  # for the imports of a new process, on a busy machine
_MAX_BYTES = 4 << 30
_LENGTH = struct.Struct("<I")


class ChildExtractor:
    """`extract_best` with a limit. It can be pickled as long as it was not called.

    limit_s: longest that one page may take, seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, html: str) -> tuple[str, str]:
        """(title, text). Raises Unextractable: "extraction_timeout", or "extraction_failed" where
        the child died or raised; ConfigError where trafilatura is not installed.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            _send(self._process.stdin, html.encode("utf-8", "surrogatepass"))
            title, text, reason = self._answer(self._limit_s)
        except (BrokenPipeError, EOFError) as error:
            self.close()
            raise Unextractable("extraction_failed") from error
        except TimeoutError as error:
            self.close()
            raise Unextractable("extraction_timeout") from error
        if reason:
            raise Unextractable(reason)
        return title, text

    def close(self) -> None:
        """End the process; a later call starts another."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _start(self) -> None:
        command = [sys.executable, "-m", "rntp_data_prep.child"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, _end, process)
        self._process = process
        try:
            _, _, reason = self._answer(_START_S)
        except (EOFError, TimeoutError) as error:
            self.close()
            raise ConfigError(
                "the process that runs trafilatura did not start; its output above says why"
            ) from error
        if reason:
            self.close()
            raise ConfigError(reason)

    def _answer(self, limit_s: float) -> tuple[str, str, str]:
        """Raises TimeoutError, and EOFError where the process has ended."""
        end = time.monotonic() + limit_s
        (length,) = _LENGTH.unpack(self._bytes(_LENGTH.size, end))
        title, text, reason = json.loads(self._bytes(length, end))
        return title, text, reason

    def _bytes(self, count: int, end: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, parts = self._process.stdout.fileno(), b""
        while len(parts) < count:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(descriptor, min(1 << 20, count - len(parts)))
            if not part:
                raise EOFError
            parts += part
        return parts


def main() -> None:
    """The child: pages in, (title, text, reason) out, until its input ends."""
    from rntp_data_prep.extract import extract_best, module

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    try:
        module("trafilatura")
    except ConfigError as error:
        _send(answers, json.dumps(["", "", str(error)]).encode())
        return
    _send(answers, json.dumps(["", "", ""]).encode())
    while head := sys.stdin.buffer.read(_LENGTH.size):
        html = sys.stdin.buffer.read(_LENGTH.unpack(head)[0]).decode("utf-8", "surrogatepass")
        try:
            answer = [*extract_best(html), ""]
        except Unextractable as error:
            answer = ["", "", error.reason]
        except Exception:  # of a library, over a page that nobody has seen
            answer = ["", "", "extraction_failed"]
        _send(answers, json.dumps(answer).encode())


def _send(file: IO[bytes], payload: bytes) -> None:
    file.write(_LENGTH.pack(len(payload)) + payload)
    file.flush()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for file in (process.stdin, process.stdout):
        if file is not None:
            with contextlib.suppress(BrokenPipeError):  # what it was not sent
                file.close()


if __name__ == "__main__":
    main()
