"""Tools by name: how a config and a thought find them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rntp.registry import Registry
from rntp.tools.page import Page, Result, Tool
from rntp.tools.strict import Strict

Maker = Callable[..., Tool]
REGISTRY: Registry[Maker] = Registry("tool")

Function = Callable[[str, Page], Result]


@dataclass(frozen=True)
class PlainTool:
    """A function as a tool: it holds nothing that has to be ended."""

    function: Function
    digest: str
    reads_page: bool
    strict: Strict | None

    def __call__(self, arguments: str, page: Page) -> Result:
        return self.function(arguments, page)

    def close(self) -> None:
        """Nothing runs."""


def register(
    name: str, *, version: str, reads_page: bool = False, strict: Strict | None = None
) -> Callable[[Function], Function]:
    """Decorator that makes a tool of a function of (arguments, page).

    version: change it with the function, so that no older outcome is replayed. reads_page, strict:
    as of `Tool`. Raises ValueError for a name that is taken or that no thought could write.
    """
    if not name or name.split() != [name]:
        raise ValueError(f"the name of a tool is one word, and {name!r} is not")

    def add(function: Function) -> Function:
        tool = PlainTool(function, f"{name} {version}", reads_page, strict)

        def make(**settings: Any) -> Tool:
            if settings:
                raise TypeError(f"the tool {name!r} takes no settings, and was given {settings}")
            return tool

        REGISTRY.register(name)(make)
        return function

    return add
