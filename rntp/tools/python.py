"""`python`: what code prints and what its last line is worth, from behind a wall."""

from collections.abc import Sequence
from typing import Literal

from rntp.errors import ConfigError
from rntp.tools.page import Failure, Page
from rntp.tools.registry import REGISTRY
from rntp.tools.sandbox import Limits, Sandbox
from rntp.tools.sandbox.bubblewrap import Bubblewrap
from rntp.tools.sandbox.monty import Monty
from rntp.tools.sessions import parses, session_programs


@REGISTRY.register("python")
class Python:
    """Run Python code that nobody trusts; it sees nothing of the run, and of the page at most the
    session.

    session: run the interactive examples before the position (`>>> …`) first, with the imports
    that they lack; where that fails, less of it, down to the last example alone. The arguments run
    behind it: a thought says what to compute besides, and may say nothing. runtime: monty, an
    interpreter of its own (a part of Python, and the faster), or bubblewrap, the whole of CPython
    in namespaces. seconds, memory_mb, output_chars: see `Limits`. workers: processes of monty.
    Where the runtime is not there, ConfigError says so: nothing runs bare.
    """

    strict = None

    def __init__(
        self,
        *,
        session: bool = False,
        runtime: Literal["monty", "bubblewrap"] = "monty",
        seconds: float = 1.0,
        memory_mb: int = 64,
        output_chars: int = 2000,
        workers: int = 2,
    ) -> None:
        limits = Limits(seconds, memory_mb, output_chars)
        self._sandbox: Sandbox
        if runtime == "monty":
            self._sandbox = Monty(limits, workers)
        elif runtime == "bubblewrap":
            self._sandbox = Bubblewrap(limits)
        else:
            raise ConfigError(f"there is no runtime {runtime!r}; take monty or bubblewrap")
        self.reads_page = session
        self.digest = f"python 1 {self._sandbox.digest}" + " session" * session

    def __call__(self, arguments: str, page: Page) -> str:
        """Run the arguments as code. Raises Failure where nothing runs."""
        sessions = session_programs(page.text) if self.reads_page else []
        if not sessions:
            return self._run([arguments])[1]
        if not arguments or not parses(arguments):
            return self._run(sessions)[1]
        session, shown = self._run(sessions)
        try:
            _, besides = self._run([f"{session}\n{arguments}"])
        except Failure:
            return shown
        return f"{shown}\n{besides}".strip()

    def _run(self, programs: Sequence[str]) -> tuple[str, str]:
        """The first program that runs, and what it shows."""
        for code in programs:
            ran = self._sandbox.run(code)
            if not ran.failure:
                return code, ran.text
        raise Failure(ran.failure, ran.text)

    def close(self) -> None:
        """End what runs."""
        self._sandbox.close()
