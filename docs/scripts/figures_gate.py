"""Tables of where to think: whole pages under rules."""

from collections.abc import Callable, Iterable
from pathlib import Path

TABLE = Path(__file__).parents[2] / "experiments/planted/results/gate/table.md"


def planted_pages() -> str:
    """Write what rules of where to think make of whole planted pages."""
    return TABLE.read_text(encoding="utf-8").rstrip()


def worth_it() -> str:
    """Say what the gate gains and spends beside perfect thoughts."""
    gates = [_cells(line) for line in TABLE.read_text("utf-8").splitlines() if "| gate, " in line]
    known, whole, spent = (_listed(cells[n] for cells in gates) for n in (-1, -2, 3))
    return (
        f"{known} of perfect thoughts' gain for {spent} of their tokens, questions that "
        f"training lacks left out; with them {whole}"
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _listed(cells: Iterable[str]) -> str:
    *first, last = cells
    return f"{', '.join(first)} and {last}"


MAKERS: dict[str, Callable[[], str]] = {"planted_pages": planted_pages}
