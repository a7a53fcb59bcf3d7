"""Tools that a thought can call: one file each, a pure function of (arguments, page) to a text.

A new tool is a file beside these with one registered function, and a line in the imports below (or,
outside the package, anywhere that runs before the config is checked):

    @rntp.tools.register("length", version="1")
    def length(arguments: str, page: Page) -> str:
        return str(len(arguments))

A tool that holds something (an index, processes) is a class with what `Tool` lists, registered by
`REGISTRY.register(name)`; its settings are the arguments of its constructor.
"""

from rntp.tools import python, recall, search
from rntp.tools.page import Failure, Outcome, Page, Quote, Tool
from rntp.tools.registry import REGISTRY, register
from rntp.tools.strict import Strict, Withheld

__all__ = [
    "REGISTRY",
    "Failure",
    "Outcome",
    "Page",
    "Quote",
    "Strict",
    "Tool",
    "Withheld",
    "python",
    "recall",
    "register",
    "search",
]
