"""Sizes that tell a house that strangers find their way in from one that has grown."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from rntp.config import Config

ROOT = Path(__file__).parents[1]
PACKAGES = ("rntp", "kernels/rntp_kernels", "data_prep/rntp_data_prep")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
Function = ast.FunctionDef | ast.AsyncFunctionDef

MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 80
MOST_STATEMENTS_OF_A_CONSTRUCTOR = 30
MOST_LINES_OF_THE_TRAINER = 300
MOST_LINES_OF_THE_STEP = 40
MOST_FIELDS = 76
MOST_BYTES_OF_README = 12 * 1024


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def lines(function: Function) -> int:
    assert function.end_lineno
    return function.end_lineno - function.lineno + 1


def statements(function: Function) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1


def test_files_are_small() -> None:
    sizes = {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in FILES}
    assert len(sizes) > 250
    large = {name: n for name, n in sizes.items() if n > MOST_LINES_OF_A_FILE}
    assert large == {}


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{function.name}": lines(function)
        for path in FILES
        for function in functions(path)
        if lines(function) > MOST_LINES_OF_A_FUNCTION
    }
    assert long == {}


def test_constructors_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): statements(function)
        for path in FILES
        for function in functions(path)
        if function.name == "__init__" and statements(function) > MOST_STATEMENTS_OF_A_CONSTRUCTOR
    }
    assert long == {}


def test_the_step_is_read_on_one_screen() -> None:
    trainer = ROOT / "rntp" / "trainer.py"
    assert trainer.read_text().count("\n") <= MOST_LINES_OF_THE_TRAINER
    (step,) = (f for f in functions(trainer) if f.name == "train_step")
    assert lines(step) <= MOST_LINES_OF_THE_STEP


def test_the_config_has_few_fields() -> None:
    sections = [info.annotation for info in Config.model_fields.values()]
    assert sum(len(section.model_fields) for section in sections if section) <= MOST_FIELDS


def test_the_readme_is_a_page() -> None:
    assert (ROOT / "README.md").stat().st_size <= MOST_BYTES_OF_README


def test_no_path_of_a_machine_stands_in_the_code() -> None:
    path = re.compile(r"""["' ]/(home|root|work|Users)/""")
    found = [str(file.relative_to(ROOT)) for file in FILES if path.search(file.read_text())]
    assert found == []
