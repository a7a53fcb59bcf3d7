"""Documents that cannot be read as they were written: found by their hash, replaced, counted.

A damaged document is read once more, then set aside for the rest of the run, and the ordinals that
would have given it give another document, the same on every rank and after every resume. So no
document is lost uncounted; past a budget the run stops with the list.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rntp.errors import DataError

_LISTED = 20


@dataclass(frozen=True, slots=True)
class Damage:
    """A document that was found damaged. number: of the document in its corpus."""

    number: int
    document_id: str
    shard: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: document {self.document_id} (number {self.number}): {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class DamagedDocument(DataError):
    """A document that does not match its hash, twice."""

    def __init__(self, damage: Damage, remedy: str) -> None:
        super().__init__(f"{damage}; {remedy}")
        self.damage = damage


def listed(found: Sequence[Damage]) -> str:
    """One line each, indented; the first of many."""
    lines = [f"  {damage}" for damage in found[:_LISTED]]
    if len(found) > _LISTED:
        lines.append(f"  and {len(found) - _LISTED} more")
    return "\n".join(lines)


class SetAside:
    """The damaged documents of one corpus, by number; most: so many are allowed."""

    def __init__(self, where: object, most: int) -> None:
        self._where = where
        self._most = most
        self._found: dict[int, Damage] = {}

    def add(self, found: Iterable[Damage]) -> None:
        """Raises DataError with the list when there are more than the budget allows."""
        for damage in found:
            # One atomic step: readers in other threads see it whole.
            self._found.setdefault(damage.number, damage)
        if len(self._found) > self._most:
            raise DataError(
                f"{len(self._found)} documents of {self._where} are damaged and {self._most} are "
                "allowed (`damaged` of run.on_trouble); restore the shards from a copy, or run "
                f"`rntp data prep` again:\n{listed(list(self._found.values()))}"
            )

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def __iter__(self) -> Iterator[Damage]:
        return iter(list(self._found.values()))

    def __len__(self) -> int:
        return len(self._found)
