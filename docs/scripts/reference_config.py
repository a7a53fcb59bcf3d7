"""Make the reference of configs from their schema, their choices and their rules."""

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from made_text import linked
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import PydanticJsonSchemaWarning

import rntp
from rntp.config import identity
from rntp.config.choice import Options, Parameter
from rntp.config.choices import SCHEMES
from rntp.config.rules import RULES, Rule
from rntp.config.warned import WARNINGS

# Where name and type do not say it.
UNITS = {
    "reward.horizon": "tokens",
    "placement.band.entropy": "nats",
    "placement.band.surprise": "nats",
    "placement.positions_per_doc": "positions",
    "evaluation.positions_per_doc": "positions",
    "evaluation.thoughts_per_position": "thoughts",
    "evaluation.docs": "documents",
    "thought.thoughts_per_position": "thoughts",
    "objective.epochs_per_rollout": "updates",
    "checkpoint.keep": "checkpoints",
    "data.max_documents": "documents",
    "data.heldout_fraction": "share",
}


BY_ENDING = {
    "_s": "seconds",
    "_tokens": "tokens",
    "_steps": "steps",
    "steps": "steps",
    "_docs": "contexts",
    "docs_per_step": "contexts",
    "docs_per_batch": "contexts",
    "tokens_per_microbatch": "tokens",
    "shard_bytes": "bytes",
    "_chars": "characters",
}


def unit(name: str) -> str:
    """Tell the unit of a field; "" for one that has none."""
    ending = (u for end, u in BY_ENDING.items() if name.endswith(end))
    return UNITS.get(name, next(ending, ""))


def type_text(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Describe a JSON schema in words."""
    if "$ref" in schema:
        return type_text(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        parts = [type_text(part, definitions) for part in schema["anyOf"]]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in schema:
        return " · ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "value")
    if kind == "array":
        inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        count = f"{schema['maxItems']} of " if schema.get("maxItems") else "list of "
        return count + type_text(inner, definitions)
    if kind == "object":
        inner = schema.get("additionalProperties")
        values = f" → {type_text(inner, definitions)}" if isinstance(inner, dict) else ""
        return f"mapping name{values}"
    words = {"integer": "integer", "number": "number", "boolean": "true or false"}
    text = words.get(kind, {"string": "text", "null": "nothing"}.get(kind, kind))
    if schema.get("format") == "path":
        text = "path"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " ".join([text, ", ".join(bounds)]).strip()


def default_text(value: object) -> str:
    """Write a default as YAML has it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    if value is None:
        return "nothing"
    return '`""`' if value == "" else f"`{value}`"


def nested_model(annotation: object) -> type[BaseModel] | None:
    """Find the section that a field holds, or may hold."""
    for kind in (annotation, *get_args(annotation)):
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
    return None


def fields_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, facts, description) of every field, those of nested sections after their own."""
    with warnings.catch_warnings():  # defaults are written by hand
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
        schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        nested = nested_model(field.annotation)
        described = " ".join((field.description or "").split())
        if nested is not None:
            off = " · default nothing" if field.default is None else ""
            yield path, f"section{off}", described
            yield from fields_of(nested, f"{path}.")
            continue
        options = next((m for m in field.metadata if isinstance(m, Options)), None)
        facts = [type_text(schema["properties"][name], definitions)]
        if options is not None:
            names = " · ".join(f"`{choice}`" for choice in options.names)
            facts = [names or "name"]
        if measured := unit(path):
            facts.append(measured)
        required = field.is_required()
        facts.append("required" if required else f"default {default_text(field.default)}")
        if options is not None:
            described = f"{described}\n\n{parameters(options.parameters, options.names)}"
        yield path, " · ".join(facts), described


def parameters(found: Mapping[str, Parameter], names: Sequence[str] = ()) -> str:
    """Write the parameters of a choice."""
    lines = ["| parameter | of | type, default | meaning |", "|---|---|---|---|"]
    for key, parameter in found.items():
        kind = type_text(TypeAdapter(parameter.type).json_schema(), {})
        of = ", ".join(f"`{name}`" for name in parameter.of) or ("any" if names else "it")
        default = default_text(parameter.default)
        lines.append(f"| `{key}` | {of} | {kind}, {default} | {parameter.doc} |")
    return "\n".join(lines)


def field_list(model: type[BaseModel], prefix: str, level: str) -> list[str]:
    """Write a heading, its facts and the meaning of each field."""
    parts = []
    for name, facts, described in fields_of(model, prefix):
        parts += [f"{level} `{name}`", f"*{facts}*", with_fields(linked(described), name)]
    return parts


def with_fields(text: str, own: str) -> str:
    """Link the fields of a config that a description names, but for its own."""
    known = {
        f"{name}.{field}"
        for name, section in rntp.Config.model_fields.items()
        for field in getattr(section.annotation, "model_fields", {})
    }

    def link(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known or name == own:
            return match[0]
        return f"[`{name}`](#{name.replace('.', '')})"

    pieces = text.split("`")  # every other one is code
    pieces[::2] = [re.sub(r"(?<![\w.#/])(\w+\.\w+)\b", link, piece) for piece in pieces[::2]]
    return "`".join(pieces)


def configuration() -> str:
    """Write every field of a run's config, section by section."""
    parts = []
    for name, field in rntp.Config.model_fields.items():
        section = field.annotation
        assert inspect.isclass(section)
        assert issubclass(section, BaseModel)
        parts += [f"## `{name}:`", *field_list(section, f"{name}.", "###")]
    return "\n\n".join(parts)


def preparation() -> str:
    """Write every key of a preparation."""
    from rntp_data_prep.config import PrepConfig

    return "\n\n".join(field_list(PrepConfig, "", "###"))


def frontier() -> str:
    """Write every key of a frontier."""
    from rntp.grow.settings import Frontier

    return "\n\n".join(field_list(Frontier, "", "###"))


def scheme_parameters() -> str:
    """Write the parameters of reward schemes."""
    lines = ["| scheme | parameter | type, default | meaning |", "|---|---|---|---|"]
    for scheme, found in SCHEMES.items():
        for key, parameter in found.items():
            kind = type_text(TypeAdapter(parameter.type).json_schema(), {})
            default = default_text(parameter.default)
            meaning = linked(parameter.doc)
            lines.append(f"| `{scheme}` | `{key}` | {kind}, {default} | {meaning} |")
    return "\n".join(lines)


def free_fields() -> str:
    """List the fields that may change between two starts of a run."""
    free = []
    for name, section in rntp.Config.model_fields.items():
        every = getattr(section.annotation, "model_fields", {})
        mine = every if name in identity._NOT_TRAINED else identity._FREE.get(name, ())
        free += [f"`{name}.{field}`" for field in every if field in mine]
    return ", ".join(free) + "."


def rules() -> str:
    """Write what fields have to be to each other, and what a broken rule says."""
    return table_of_rules(RULES, "message where it is broken")


def config_warnings() -> str:
    """Write what is allowed but probably not meant."""
    return table_of_rules(WARNINGS, "warning")


def table_of_rules(rules: Sequence[Rule], head: str) -> str:
    """Write a table of rules, … for values."""
    lines = [f"| fields | {head} |", "|---|---|"]
    for rule in rules:
        message = re.sub(r"\{[^}]*\}", "…", " ".join(rule.message.split()))
        fields = " ".join(f"`{field}`" for field in rule.fields)
        lines.append(f"| {fields} | {message} |")
    return "\n".join(lines)
