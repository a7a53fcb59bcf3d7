"""Tables of where to think: whole pages under rules."""

from collections.abc import Callable
from pathlib import Path

TABLE = Path(__file__).parents[2] / "experiments/planted/results/gate/table.md"


def planted_pages() -> str:
    """Write what rules of where to think make of whole planted pages."""
    return TABLE.read_text(encoding="utf-8").rstrip()


MAKERS: dict[str, Callable[[], str]] = {"planted_pages": planted_pages}
