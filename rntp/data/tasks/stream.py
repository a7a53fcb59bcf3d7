"""Tasks by ordinal: pure functions of seed and ordinal, so that there is no state to save."""

from collections.abc import Iterable, Sequence

from rntp import rng
from rntp.data.damage import Damage
from rntp.data.order import Order
from rntp.data.selection import Split
from rntp.data.stream import Read, is_heldout
from rntp.data.tasks.procedural import NUMBERS, Generator
from rntp.data.tasks.rendering import Renderer, task_id
from rntp.data.tasks.rows import Row
from rntp.errors import DataError
from rntp.types import Context

_ENDLESS = 1 << 40  # more tasks than a run gets to
_TRIES = 1000  # for a task of the split that fits


class _Undamaged:
    """A stream of what is whole."""

    num_too_short = 0

    def __getitem__(self, ordinal: int) -> Context:
        raise NotImplementedError

    def read(self, ordinal: int) -> Read:
        """See `rntp.data.stream.Stream`."""
        return Read(self[ordinal])

    def exclude(self, read: Read) -> None:
        """Nothing ever is."""

    def know(self, damaged: Iterable[tuple[str, Damage]]) -> None:
        """Nothing ever is."""

    @property
    def damaged(self) -> list[tuple[str, Damage]]:
        return []


class ListedTasks(_Undamaged):
    """Tasks of a list, shuffled anew in every pass. num_documents: of a pass."""

    def __init__(
        self,
        rows: Sequence[Row],
        renderer: Renderer,
        source: str,
        seed: int,
        max_documents: int = 0,
    ) -> None:
        """max_documents: hand out only the first so many of the order; 0 is all."""
        self._rows = list(rows)
        if 0 < max_documents < len(rows):
            order = Order(len(rows), seed)
            self._rows = [rows[order[n][0]] for n in range(max_documents)]
        self._renderer, self._source = renderer, source
        self._order = Order(len(self._rows), seed)
        self.num_documents = len(self._rows)

    def __getitem__(self, ordinal: int) -> Context:
        item, visit = self._order[ordinal]
        return self._renderer.context(self._rows[item], ordinal, visit, self._source)


class MadeTasks(_Undamaged):
    """Tasks of a generator without end.

    The task of an ordinal is the first that is of the split and fits, among those that keyed draws
    from (ordinal, 0), (ordinal, 1), … number.
    """

    num_documents = _ENDLESS

    def __init__(
        self,
        generator: Generator,
        renderer: Renderer,
        source: str,
        split: Split,
        seed: int,
        heldout_fraction: float,
    ) -> None:
        self._generator, self._renderer, self._source = generator, renderer, source
        self._split, self._seed, self._heldout_fraction = split, seed, heldout_fraction

    def __getitem__(self, ordinal: int) -> Context:
        """Raises DataError where no task is of the split and fits."""
        row, told = self._find(ordinal)
        if row is None:
            raise DataError(f"{self._source}: of {_TRIES} tasks none will do: {told}")
        return self._renderer.context(row, ordinal, 0, self._source)

    def some(self, count: int) -> ListedTasks:
        """The first `count` of these with prompts that differ; fewer where there are no more.

        Raises DataError where there is none.
        """
        found: dict[str, Row] = {}
        for ordinal in range(count):
            row, told = self._find(ordinal)
            if row is None:
                raise DataError(f"{self._source}: of {_TRIES} tasks none will do: {told}")
            found.setdefault(row.prompt, row)
        return ListedTasks(list(found.values()), self._renderer, self._source, self._seed)

    def _find(self, ordinal: int) -> tuple[Row | None, str]:
        """The task of an ordinal; where there is none, what is wrong with the last one."""
        told = f"they are not of the {self._split} split; change data.heldout_fraction"
        for attempt in range(_TRIES):
            row = self._numbered(ordinal, attempt)
            if split_of(row, self._heldout_fraction) == self._split:
                told = self._renderer.complaint(row)
                if not told:
                    return row, ""
        return None, told

    def _numbered(self, ordinal: int, attempt: int) -> Row:
        draw = rng.one(self._seed, "task", ordinal * _TRIES + attempt)
        return self._generator[int(draw * NUMBERS)]


def split_of(row: Row, heldout_fraction: float) -> Split:
    """Tell a task's split, by a hash of its prompt."""
    return "heldout" if is_heldout(task_id(row.prompt), heldout_fraction) else "train"
