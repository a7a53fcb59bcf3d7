"""The child process from its parent's side: started, asked, ended."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rntp.errors import ConfigError, SamplersLost
from rntp.rollout import Check, no_check
from rntp.rollout.vllm.child import ClosedError, Frame, receive, send

_LOOK_S = 0.1  # between two calls of `check` while the child works
_TAIL = 400  # characters of the log in a message

CHILD = Path(__file__).parent / "child.py"


class Child:
    """A process that answers frames.

    command: without the number of its socket. log: the file that takes what it prints. variables:
    of its environment, on top of this one's. patience_s: the longest that one answer may take; 0
    waits for ever.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        variables: Mapping[str, str],
        patience_s: float = 0.0,
    ) -> None:
        self.log, self._patience_s = log, patience_s
        log.parent.mkdir(parents=True, exist_ok=True)
        own, other = socket.socketpair()
        own.settimeout(_LOOK_S)
        self._connection = own
        with other, log.open("ab") as out:
            self._process = subprocess.Popen(
                [*command, "--socket", str(other.fileno())],
                pass_fds=[other.fileno()],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def ask(self, frame: Frame, kind: str, check: Check = no_check) -> Frame:
        """Send a frame and wait for the answer of a kind. check: called meanwhile.

        Raises SamplersLost where the process ends or does not answer, ConfigError where it cannot
        do what it is asked, and what `check` raises; then the process is of no use any more, and is
        to be closed.
        """
        begun = time.monotonic()

        def waiting() -> None:
            check()  # a sign of life of this process, so that no watchdog sees the other hang
            if 0 < self._patience_s < time.monotonic() - begun:
                raise SamplersLost(
                    f"vLLM has not answered for {self._patience_s:g} s (run.timeouts_s: hang) to "
                    f"{frame.kind}; see {self.log}. The same command goes on"
                )

        try:
            send(self._connection, frame, waiting)
            answer = receive(self._connection, waiting)
        except ClosedError as error:
            raise SamplersLost(
                f"the process of vLLM has ended ({self._ended()}) while it was to {frame.kind}; "
                f"its last words are in {self.log}: {self._tail()}\nThe same command goes on; "
                "where memory ran out, lower cache_gib of rollout.engine first"
            ) from error
        if answer.kind == "error":
            raise ConfigError(
                f"vLLM cannot {frame.kind}: {answer.facts['message']}; more in {self.log}. With "
                "rollout.engine: inprocess rntp samples itself"
            )
        if answer.kind != kind:
            raise ConfigError(
                f"the process of vLLM answered {answer.kind!r} to {frame.kind!r}: {CHILD} is of "
                "another version of rntp; install it anew"
            )
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "it has closed its socket"
        return f"by signal {-code}" if code < 0 else f"with exit code {code}"

    def _tail(self) -> str:
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return said[-_TAIL:] or "(nothing)"
