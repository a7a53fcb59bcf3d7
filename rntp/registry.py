"""Names for functions: how a config finds reward schemes and placement policies."""

from collections.abc import Callable
from typing import TypeVar

from rntp.errors import ConfigError

Function = TypeVar("Function")


class Registry(dict[str, Function]):
    """Functions by name. Looking up an unknown name raises ConfigError with the known ones."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Function], Function]:
        """Decorator that adds a function. Raises ValueError if the name is taken."""

        def add(function: Function) -> Function:
            if name in self:
                raise ValueError(f"there is already a {self.kind} {name!r}")
            self[name] = function
            return function

        return add

    def __missing__(self, name: str) -> Function:
        known = ", ".join(sorted(self))
        raise ConfigError(f"there is no {self.kind} {name!r}; there are: {known}")
