"""`python`: what code prints and what its last line is worth, from behind a wall."""

from typing import Literal

from rntp.errors import ConfigError
from rntp.tools.page import Failure, Page
from rntp.tools.registry import REGISTRY
from rntp.tools.sandbox import Limits, Sandbox
from rntp.tools.sandbox.bubblewrap import Bubblewrap
from rntp.tools.sandbox.monty import Monty


@REGISTRY.register("python")
class Python:
    """Run Python code that nobody trusts; it sees nothing of the page or of the run.

    runtime: monty, an interpreter of its own (a part of Python, and the faster), or bubblewrap, the
    whole of CPython in namespaces. seconds, memory_mb, output_chars: see `Limits`. workers:
    processes of monty. Where the runtime is not there, ConfigError says so: nothing runs bare.
    """

    reads_page = False
    strict = None

    def __init__(
        self,
        *,
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
        self.digest = f"python 1 {self._sandbox.digest}"

    def __call__(self, arguments: str, page: Page) -> str:
        """Run the arguments as code. The page is not looked at."""
        ran = self._sandbox.run(arguments)
        if ran.failure:
            raise Failure(ran.failure, ran.text)
        return ran.text

    def close(self) -> None:
        """End what runs."""
        self._sandbox.close()
