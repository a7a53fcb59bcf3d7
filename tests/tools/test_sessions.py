"""Interactive sessions in a text: examples, the program of them, imports that it lacks."""

import pytest

from rntp.tools import REGISTRY, Failure, Page
from rntp.tools.sessions import Example, examples_of, program, session_programs, with_imports

TEXT = """math - Functions

>>> import math
>>> for n in (1, 2):
...     n * 2
...
2
4
>>> 1 / 0
Traceback (most recent call last):
  ...
ZeroDivisionError: division by zero

So it is.
    >>> (3,
    ...  4)
    (3,
      4)

>>> unanswered"""


def test_examples_have_their_outputs_and_places() -> None:
    found = list(examples_of(TEXT))
    assert [e.typed for e in found] == [
        "import math",
        "for n in (1, 2):\n    n * 2\n",
        "1 / 0",
        "(3,\n 4)",
        "unanswered",
    ]
    assert [e.output.partition("\n")[0] for e in found] == [
        "",
        "2",
        "Traceback (most recent call last):",
        "    (3,",
        "",
    ]
    assert [e.raised for e in found] == [False, False, True, False, False]
    assert found[1].output == "2\n4"
    for example in found:
        assert TEXT[example.begin : example.end] == example.output
        assert TEXT[example.start :].lstrip().startswith(">>> " + example.typed.partition("\n")[0])
    assert list(examples_of("a >>> b\n>>>c\n... d\n")) == []


def test_a_program_leaves_out_what_raised() -> None:
    raised = Example("1 / 0", "Traceback (most recent call last):\n", 0, 0, 9)
    fine = Example("x = 1", "", 0, 0, 0)
    assert program([fine, raised, fine]) == "x = 1\nx = 1"
    assert program([fine, raised]) == "x = 1\n1 / 0"


def test_imports_that_are_missing() -> None:
    for code, home, lines in (
        ("re.match('a', text)", "re", ["from re import *", "import re"]),
        ("import re\nre.match('a', 'b')", "re", []),
        ("from os import path\npath.join(sep)", "os", ["from os import *"]),
        ("def f(x, *y):\n    return x, y\nf(1)\n[z for z in (1,)]", "os", []),
        ("class A: pass\ntry: A()\nexcept Exception as e: print(e)", "os", []),
        ("join(1)", "os.path", ["from os.path import *"]),
        ("join(1)", "5.", []),
        ("join(1)", "Sorting", []),
        ("join(1", "os", []),
        ("x = re.match", "Sorting", ["import re"]),
    ):
        assert with_imports(code, home) == "\n".join([*lines, code]), code


def test_the_programs_of_a_session() -> None:
    assert session_programs("No prompt >>> here") == []
    text = "math - Functions\n\n>>> x = floor(2.5)\n>>> x + 1\n"
    assert session_programs(text) == [
        "from math import *\nx = floor(2.5)\nx + 1",
        "x = floor(2.5)\nx + 1",
        "x + 1",
    ]
    assert session_programs(">>> 1\n") == ["1"]


def test_a_call_runs_behind_the_session_of_its_page() -> None:
    pytest.importorskip("pydantic_monty")
    tool, plain = REGISTRY["python"](session=True), REGISTRY["python"]()
    assert (tool.reads_page, plain.reads_page) == (True, False)
    assert tool.digest != plain.digest
    page = Page("d", 9, "Sums\n\n>>> x = 20\n>>> x + 1\n", ())
    broken = Page("d", 9, "Sums\n\n>>> x = y\n>>> 3 * 7\n", ())
    try:
        assert tool("", page) == "21"
        assert tool("x * 2", page) == "21\n40"
        assert tool("no Python at all", page) == "21"
        assert tool("1 / 0", page) == "21"
        assert tool("", broken) == "21"  # of the last example alone
        assert tool("6 * 7", Page("d", 0, "No session.", ())) == "42"
        for call in (lambda: plain("x * 2", page), lambda: tool("", Page("d", 9, ">>> y\n", ()))):
            with pytest.raises(Failure, match="code_error"):
                call()
    finally:
        tool.close()
        plain.close()
