"""`rntp completion`: print a script that completes commands and files in a shell."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from rntp.errors import ConfigError

NAME = "completion"
HELP = "print a completion script for a shell"

SHELLS = ("bash", "zsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rntp completion`."""
    parser.add_argument("shell", choices=SHELLS, help="source <(rntp completion bash)")


def run(arguments: argparse.Namespace) -> int:
    """Print the script; returns the exit code. arguments.root: the parser of all commands."""
    print(script(arguments.root, arguments.shell))
    return 0


def script(root: argparse.ArgumentParser, shell: str) -> str:
    """Make the script from a parser.

    Raises ConfigError where the package that makes it is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(
            "rntp completion needs the package shtab; install the extra `completion` "
            "(pip install 'rntp[completion]')"
        ) from error
    for action in _actions(root):
        if action.type is Path:
            setattr(action, "complete", shtab.FILE)  # noqa: B010 - as shtab wants it
    made: str = shtab.complete(root, shell)
    return made


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
