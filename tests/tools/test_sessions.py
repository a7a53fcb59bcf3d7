"""Interactive sessions in a text: examples, the program of them, imports that it lacks."""

from rntp.tools.sessions import Example, examples_of, program, with_imports

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
