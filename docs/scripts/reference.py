"""Make the reference pages from the program: fields, rules, commands, metrics, registries."""

import argparse
import ast
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import PydanticJsonSchemaWarning

import rntp
from rntp.cli import build_parser
from rntp.config import identity
from rntp.config.choice import Options, Parameter
from rntp.config.choices import SCHEMES
from rntp.config.rules import RULES, WARNINGS, Rule
from rntp.run.metric_keys import METRICS, Metric

# Where name and type do not say it.
UNITS = {
    "reward.horizon": "tokens",
    "placement.band.entropy": "nats",
    "placement.band.surprise": "nats",
    "placement.positions_per_doc": "positions",
    "evaluation.positions_per_doc": "positions",
    "evaluation.thoughts_per_position": "thoughts",
    "evaluation.docs": "documents",
    "evaluation.reused_docs": "documents",
    "thought.thoughts_per_position": "thoughts",
    "objective.epochs_per_rollout": "updates",
    "checkpoint.keep": "checkpoints",
    "data.max_documents": "documents",
    "data.max_damaged": "share",
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


def linked(text: str) -> str:
    """Make arXiv ids links and names of modules code, outside of code."""
    pieces = text.split("`")  # every other one is code
    for n in range(0, len(pieces), 2):
        piece = pieces[n].replace("<", "&lt;")
        piece = re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", piece)
        pieces[n] = re.sub(r"(?<!\w)(rntp\.[a-z_.]+[a-z_])(?!\w)", r"`\1`", piece)
    return "`".join(pieces)


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


def commands() -> str:
    """Write every command with its arguments."""
    return "\n\n".join(
        part for name, parser in leaves(build_parser()) for part in told(name, parser)
    )


def leaves(
    parser: argparse.ArgumentParser, name: str = "rntp"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that does something, in the order of the help."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield name, parser
    for group in groups:
        for word, child in group.choices.items():
            yield from leaves(child, f"{name} {word}")


def summary(name: str) -> str:
    """Find what the help says of a command."""
    parser = build_parser()
    for word in name.split()[1:]:
        (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        (said,) = (c.help for c in group._choices_actions if c.dest == word)
        parser = group.choices[word]
    return sentence(said or "")


def sentence(text: str) -> str:
    """Begin with a capital, unless with a name or an option, and end with a full stop."""
    first = text.partition(" ")[0]
    if not any(sign in first for sign in "-:._"):
        text = text[:1].upper() + text[1:]
    return text.rstrip(".") + "." if text else ""


def told(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Write heading, purpose, usage and arguments of one command."""
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    parts = [f"## `{name}`", summary(name), f"```text\n{usage(name, actions)}\n```"]
    if actions:
        rows = [f"| {shown(action)} | {meaning(action)} |" for action in actions]
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    return parts


def usage(name: str, actions: Sequence[argparse.Action]) -> str:
    """Write a usage line, wrapped between arguments."""
    lines = [name]
    for word in map(used, actions):
        if len(lines[-1]) + len(word) >= 72:
            lines.append(" " * len("rntp"))
        lines[-1] += f" {word}"
    return "\n".join(lines)


def value_name(action: argparse.Action) -> str:
    """Name the value that an argument takes; "" for a flag."""
    if action.nargs == 0:
        return ""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices is not None:
        name = "|".join(map(str, action.choices))
    name = str(name).upper() if action.choices is None and not action.metavar else str(name)
    return f"{name} …" if action.nargs in ("+", "*") else name


def used(action: argparse.Action) -> str:
    """Write an argument as in a usage line."""
    words = [*action.option_strings[-1:], value_name(action)]
    text = " ".join(word for word in words if word)
    optional = (action.option_strings and not action.required) or action.nargs == "?"
    return f"[{text}]" if optional else text


def shown(action: argparse.Action) -> str:
    """Write an argument as in the table."""
    words = [", ".join(action.option_strings), value_name(action)]
    return f"`{' '.join(word for word in words if word)}`".replace("|", "\\|")


def meaning(action: argparse.Action) -> str:
    """Write what an argument does; of one that says nothing, its choices or default speak."""
    known = {
        "json": "Print facts as JSON.",
        "config": "The config file.",
        "run_dir": "A run folder.",
    }
    text = action.help % {"default": action.default} if action.help else ""
    return sentence(text) or known.get(action.dest, "").replace("|", "\\|")


def metrics() -> str:
    """Write every key of metrics.jsonl."""
    parts, group = [], ""
    for metric in METRICS:
        if (now := GROUPS.get(metric.key)) is not None:
            group = now
            parts.append(f"## {group}")
        parts += told_metric(metric)
    return "\n\n".join(parts)


# First key of each group, in the order of the table.
GROUPS = {
    "step": "The step",
    "reward/mean": "Rewards and groups",
    "gain/mean": "What a thought is worth",
    "thought/tokens_mean": "Thoughts and answers",
    "kl/sampler": "Sampler, policy and reference",
    "placement/entropy": "Where it thought",
    "loss/total": "The loss",
    "tokens/context": "Sizes and compute",
    "time/step_s": "Time and memory",
    "data/ordinal_first": "Data",
    "moe/load_max": "Mixtures of experts",
}


def told_metric(metric: Metric) -> list[str]:
    """Write heading, unit, meaning, how to read it and what is bad."""
    facts = ["a plain number" if metric.unit == "1" else metric.unit]
    if metric.when not in ("", "every run"):
        facts.append(f"only with {metric.when}")
    parts = [f"### `{metric.key}`", f"*{' · '.join(facts)}*", metric.meaning]
    if metric.reading:
        parts.append(metric.reading)
    if metric.bad:
        parts.append(f"**Look into it:** {metric.bad}")
    return parts


def reward_schemes() -> str:
    """Write the registered reward schemes."""
    from rntp import rewards

    lines = ["| scheme | reward of a thought | no-think prediction | needs |", "|---|---|---|---|"]
    for name, scheme in sorted(rewards.REGISTRY.items()):
        needs = rewards.NEEDS[name]
        wants = [
            *(["answers"] if needs.answers else []),
            *([f"a judge ({needs.judge})"] if needs.judge else []),
            *(["extra `text`"] if needs.package else []),
        ]
        lines.append(
            f"| `{name}` | {first_line(scheme)} | {rewards.BASELINES[name]} | {', '.join(wants)} |"
        )
    return "\n".join(lines)


def placement_policies() -> str:
    """Write the registered placement policies."""
    from rntp import placement

    lines = ["| policy | score of a position |", "|---|---|"]
    for name, policy in sorted(placement.REGISTRY.items()):
        lines.append(f"| `{name}` | {first_line(policy)} |")
    return "\n".join(lines)


def first_line(function: object) -> str:
    """Take the first paragraph of a docstring, safe in a table."""
    return in_table((inspect.getdoc(function) or "").split("\n\n")[0])


def in_table(text: str) -> str:
    """Put a paragraph on one line, its signs escaped outside of code."""
    paragraph = " ".join(text.split())
    pieces = paragraph.replace("|", "\\|").split("`")  # every other one is code
    plain = [piece.replace("*", "\\*").replace("_", "\\_") for piece in pieces[::2]]
    pieces[::2] = [linked(piece) for piece in plain]
    return "`".join(pieces)


ROOT = Path(__file__).parents[2]
# In the order of the data; what is not named comes after.
PACKAGES = (
    *("", "config", "data", "placement", "rollout", "model", "rewards", "objective", "training"),
    *("run", "runtime", "evaluation", "commands", "ablate", "report", "bench", "traces"),
)


def modules() -> str:
    """Write every package and file of the trainer with the first sentence of its docstring."""
    folder = ROOT / "rntp"
    found = sorted({path.parent.relative_to(folder) for path in folder.rglob("*.py")})
    order = {name: number for number, name in enumerate(PACKAGES)}
    found.sort(key=lambda p: (order.get(str(p.parts[0]) if p.parts else "", len(order)), str(p)))
    parts = []
    for package in found:
        name = "/".join(("rntp", *package.parts))
        said = first_sentence(folder / package / "__init__.py")
        rows = [
            f"| `{path.name}` | {first_sentence(path)} |"
            for path in sorted((folder / package).glob("*.py"))
            if path.name != "__init__.py"
        ]
        parts += [f"## `{name}/`", said]
        if rows:
            parts.append("\n".join(["| file | what it does |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def first_sentence(path: Path) -> str:
    """Take the first paragraph of a module's docstring, safe in a table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else ""
    return in_table((text or "").split("\n\n")[0])


MAKERS = {
    "config_warnings": config_warnings,
    "free_fields": free_fields,
    "modules": modules,
    "configuration": configuration,
    "preparation": preparation,
    "rules": rules,
    "scheme_parameters": scheme_parameters,
    "commands": commands,
    "metrics": metrics,
    "reward_schemes": reward_schemes,
    "placement_policies": placement_policies,
}
