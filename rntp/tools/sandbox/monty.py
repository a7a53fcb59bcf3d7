"""Code in pydantic-monty: an interpreter of its own, without CPython, in worker processes.

It has no file, no net, no environment and no process to give away: what is not there needs no rule.
Clock and chance are fixed, so that the outcome is a function of the code, but for the limit of
seconds. A worker that dies is replaced. Behind the interpreter's own limits stand those of the
kernel, and a deadline that ends the worker.
"""

import contextlib
import datetime
import importlib.metadata
import resource
from typing import Any

from rntp.errors import ConfigError
from rntp.tools.sandbox import Limits, Ran, show

_RECURSION = 200
# A worker maps more than the code may allocate: its program, its stack, its copies of messages.
_WORKER_MB = 512
# Behind its limit of seconds, until a worker that does not notice is ended.
_GRACE_S = 0.5
_POLICY: Any = {
    "datetime": datetime.datetime(2000, 1, 1),
    "timezone": "utc",
    "sleep": "zero",
    "process_time": "zero",
    "random_start": {"seed": 0},
}
_KINDS = {"TimeoutError": "out_of_time", "MemoryError": "out_of_memory"}
REMEDY = "the tool `python` needs the package pydantic-monty: pip install 'rntp[tools]'"


class Monty:
    """A pool of workers. Raises ConfigError where the package is not there or does not work."""

    def __init__(self, limits: Limits, workers: int) -> None:
        try:
            import pydantic_monty
        except ImportError as error:
            raise ConfigError(REMEDY) from error
        self._library: Any = pydantic_monty
        self._limits = limits
        # The host collects what is printed; as many bytes hold at least as many characters.
        self._most_printed = 4 * limits.output_chars + 4096
        version = importlib.metadata.version("pydantic-monty")
        self.digest = f"monty {version} {limits} {_RECURSION}"
        self._pool = pydantic_monty.Monty(
            max_processes=workers,
            request_timeout=limits.seconds + _GRACE_S,
            feed_duration_limit_grace=_GRACE_S,
            turn_duration_limit_grace=_GRACE_S,
        )
        self._walled: set[int] = set()
        try:
            self._pool.__enter__()
            found = self.run("6 * 7")
        except Exception as error:
            raise ConfigError(f"pydantic-monty does not start ({error}); {REMEDY}") from error
        if found != Ran("42"):
            raise ConfigError(f"pydantic-monty gives {found} for 6 * 7; {REMEDY}")

    def run(self, code: str) -> Ran:
        """Run code in a session of its own, which nothing outlives."""
        library, limits = self._library, self._limits
        printed = library.CollectString(max_bytes=self._most_printed)
        try:
            with self._checkout() as session:
                self._wall(session.worker_pid)
                value = session.feed_run(code, print_callback=printed)
                shown = None if value is None else repr(value)
        except library.MontyCrashedError as error:
            kind = "out_of_time" if error.timed_out else "crashed"
            return Ran(kind.replace("_", " "), kind)
        except library.MontyError as error:
            return self._failed(error, printed.output)
        text = show(printed.output, shown)
        return Ran(text[: limits.output_chars])

    def close(self) -> None:
        """End the workers."""
        self._pool.__exit__(None, None, None)

    def _checkout(self) -> Any:
        limits = self._limits
        return self._pool.checkout(
            limits={
                "max_feed_duration_secs": limits.seconds,
                "max_memory": limits.memory_mb << 20,
                "max_recursion_depth": _RECURSION,
                "max_suspensions": 100,
            },
            os_policy=_POLICY,
        )

    def _wall(self, pid: int | None) -> None:
        """Give a worker the kernel's limits, once: whatever it does, it fills no memory."""
        if pid is None or pid in self._walled:
            return
        space = (_WORKER_MB + 2 * self._limits.memory_mb) << 20
        for name, most in ((resource.RLIMIT_AS, space), (resource.RLIMIT_CORE, 0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(pid, name, (most, most))
        self._walled.add(pid)

    def _failed(self, error: Any, printed: str) -> Ran:
        kind = type(error.exception()).__name__
        if kind == "MemoryError" and f"> {self._most_printed} bytes" in str(error):
            return Ran(printed[: self._limits.output_chars], "too_much_output")
        failure = _KINDS.get(kind, "")
        if failure:  # its message has figures that differ from run to run
            return Ran(failure.replace("_", " "), failure)
        said = error.display(format="type-msg")
        return Ran(show(printed, said)[: self._limits.output_chars], "code_error")
