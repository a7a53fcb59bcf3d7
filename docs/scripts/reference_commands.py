"""Make the reference of commands from the parser."""

import argparse
from collections.abc import Iterator, Sequence

from made_text import sentence

from rntp.cli import build_parser


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
