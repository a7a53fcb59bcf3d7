"""A choice among names, with the parameters of the one that is chosen.

In YAML it is `name`, or `{name: {parameter: value, …}}`. In code it is that name, a string, which
carries the parameters: `config.objective.algorithm == "cispo"`, `…algorithm.get("clip_high")`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Parameter:
    """A parameter of some names. type: as pydantic has it. of: the names that read it; () is all.
    doc: unit and meaning."""

    type: Any
    default: Any
    of: tuple[str, ...]
    doc: str


class Choice(str):
    """The name that is chosen. parameters: those that were given; the others have defaults."""

    parameters: Mapping[str, Any]
    options: "Options"

    def get(self, name: str) -> Any:
        """Give a parameter's value: as it was set, or its default."""
        return self.parameters.get(name, self.options.parameters[name].default)

    def full(self) -> dict[str, Any]:
        """Give every parameter that the name reads, defaults included."""
        return {key: self.get(key) for key in self.options.read_by(self)}

    def plain(self) -> Any:
        """The same as YAML has it."""
        return {str(self): dict(self.parameters)} if self.parameters else str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.options.read, (self.plain(),)


@dataclass(frozen=True)
class Options:
    """What may be chosen; pydantic validates a field `Annotated[Choice, Options(…)]` by it.

    names: () leaves them to whoever registers them later. parameters: by their name.
    """

    names: tuple[str, ...]
    parameters: Mapping[str, Parameter]

    def choice(self, name: str, **parameters: Any) -> Choice:
        """Make a choice. Raises ValueError with what there is instead."""
        if self.names and name not in self.names:
            raise ValueError(f"there is no {name!r} here{_near(name, self.names)}")
        chosen = Choice(name)
        chosen.options = self
        chosen.parameters = {key: self._checked(name, key, v) for key, v in parameters.items()}
        return chosen

    def read(self, value: Any) -> Choice:
        """Make a choice of what YAML holds. Raises ValueError."""
        if isinstance(value, str):
            return value if isinstance(value, Choice) else self.choice(value)
        if isinstance(value, dict) and len(value) == 1:
            ((name, parameters),) = value.items()
            if isinstance(name, str) and isinstance(parameters, dict):
                return self.choice(name, **parameters)
        raise ValueError("give one name, or {name: {parameter: value}}")

    def read_by(self, name: str) -> list[str]:
        """Parameters that a name reads."""
        return [key for key, p in self.parameters.items() if not p.of or name in p.of]

    def readers(self, parameter: str) -> tuple[str, ...]:
        """Names that read a parameter."""
        return self.parameters[parameter].of or self.names

    def _checked(self, name: str, key: str, value: Any) -> Any:
        own = self.read_by(name)
        if key not in self.parameters:
            raise ValueError(f"{name} has no parameter {key!r}{_near(key, own)}")
        if key not in own:
            raise ValueError(
                f"{key} belongs to {', '.join(self.readers(key))}, not to {name}; take it away"
            )
        try:
            return TypeAdapter(self.parameters[key].type).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{key}: {error.errors()[0]['msg']} (given: {value!r})") from error

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(Choice.plain),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        name: dict[str, Any] = {"type": "string"}
        if self.names:
            name["enum"] = list(self.names)
        mapping = {"type": "object", "minProperties": 1, "maxProperties": 1}
        return {"anyOf": [name, mapping]}


def _near(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f" (there are: {', '.join(names)})" if names else ""
