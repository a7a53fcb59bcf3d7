"""Interactive sessions of Python in a text: what was typed, what came of it, what is missing.

    >>> math.sqrt(9)
    3.0

An example is what was typed at one prompt, and its output; nothing of it is run here.
"""

import ast
import builtins
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PROMPT, MORE = ">>>", "..."
TRACEBACK = "Traceback (most recent call last)"

_BINDS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Example:
    """What was typed at one prompt, without the prompts, and what came of it.

    start: of the prompt's line in the text. begin, end: of the output, equal where there is none.
    """

    typed: str
    output: str
    start: int
    begin: int
    end: int

    @property
    def raised(self) -> bool:
        """Whether the output shows an exception: what was typed would end a program, too."""
        return self.output.lstrip().startswith(TRACEBACK)


def examples_of(text: str) -> Iterator[Example]:
    """Find the examples of a text, in order. An output ends before an empty line and before the
    next prompt, as the module doctest has it."""
    typed: list[str] = []
    start = begin = end = place = 0
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        prompt = _behind(bare, PROMPT)
        if typed and (prompt is not None or not bare):
            yield Example("\n".join(typed), text[begin:end], start, begin, end)
            typed = []
        more = _behind(bare, MORE) if typed and begin == end else None
        if prompt is not None:
            typed, start, begin, end = [prompt], place, place, place
        elif more is not None:
            typed.append(more)
        elif typed:
            begin = place if begin == end else begin
            end = place + len(line.rstrip())
        place += len(line)
    if typed:
        yield Example("\n".join(typed), text[begin:end], start, begin, end)


def _behind(line: str, prompt: str) -> str | None:
    """What stands behind a prompt; None where the line has none."""
    return line[len(prompt) + 1 :] if line == prompt or line.startswith(prompt + " ") else None


def program(examples: Sequence[Example]) -> str:
    """Join examples into one program: of all but the last those that did not raise."""
    kept = [e for e in examples[:-1] if not e.raised] + list(examples[-1:])
    return "\n".join(e.typed for e in kept)


def with_imports(code: str, home: str) -> str:
    """Put the imports before a program that its names seem to want, as pages leave them out.

    A name that is nowhere bound is imported where the standard library has a module of that name;
    others are looked for in the module `home`, if it is one. Unchanged where nothing is missing,
    and where the code cannot be parsed.
    """
    missing = _unbound(code)
    modules = [name for name in missing if name in sys.stdlib_module_names]
    lines = [f"import {name}" for name in modules]
    if len(modules) < len(missing) and _is_module(home):
        lines.insert(0, f"from {home} import *")
    return "\n".join([*lines, code])


def session_programs(text: str) -> list[str]:
    """Programs of the session that a text ends with or has had: all of it with the imports that it
    lacks, all of it as it stands, its last example. Nothing where there is no example. The first
    word of the text may name the module that it is about."""
    session = list(examples_of(text))
    if not session:
        return []
    code, home = program(session), text.split(maxsplit=1)[0]
    return list(dict.fromkeys([with_imports(code, home), code, session[-1].typed]))


def parses(code: str) -> bool:
    """Whether code is Python at all."""
    return _tree(code) is not None


def _is_module(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in sys.stdlib_module_names and all(map(str.isidentifier, parts))


def _tree(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of literals: they are the page's
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _unbound(code: str) -> list[str]:
    """Names that are read and nowhere bound, in no order of execution; none of code that cannot be
    parsed."""
    tree = _tree(code)
    if tree is None:
        return []
    bound, read = set(dir(builtins)), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read.append(node.id)
        elif isinstance(node, ast.Name):
            bound.add(node.id)
        elif isinstance(node, _BINDS):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return [name for name in dict.fromkeys(read) if name not in bound]
