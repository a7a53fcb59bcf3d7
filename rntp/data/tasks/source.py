"""Tasks by the name that a config gives them."""

import hashlib
import json
from collections.abc import Sequence

from rntp.config.places import TASK
from rntp.config.tasks import Tasks
from rntp.data.selection import Split
from rntp.data.tasks.procedural import Generator
from rntp.data.tasks.rendering import Renderer
from rntp.data.tasks.rows import Row, read_rows
from rntp.data.tasks.stream import ListedTasks, MadeTasks, split_of
from rntp.errors import DataError

GYM = "gym:"


class TaskSource:
    """Tasks by name, for those who ask what the data of a run is.

    rows: all of them; None of a generator, which makes them when they are asked for. digest: of the
    tasks, or of what makes them. total_tokens: 0, since nothing has been encoded yet.
    """

    total_tokens = 0

    def __init__(self, source: str, tasks: Tasks) -> None:
        """Raises DataError and ConfigError, as `read_rows` and `Generator`."""
        self.source, self.tasks = source, tasks
        name = source.removeprefix(TASK)
        self.rows: Sequence[Row] | None = None
        self.generator: Generator | None = None
        self.num_again = 0
        if name.startswith(GYM):
            self.generator = Generator(
                name.removeprefix(GYM), tasks.gym.get(name.removeprefix(GYM), {})
            )
            facts: object = self.generator.facts
        else:
            self.rows, self.num_again = read_rows(name, tasks)
            facts = [[row.prompt, row.answer] for row in self.rows]
        self.num_docs = len(self.rows) if self.rows is not None else 0
        self.digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def facts(self) -> str:
        """The tasks in a few words."""
        if self.rows is None:
            return f"tasks made by {self.source.removeprefix(TASK + GYM)}"
        again = f", {self.num_again} more that came again" if self.num_again else ""
        return f"{len(self.rows)} tasks of {self.source.removeprefix(TASK)}{again}"


def task_stream(
    source: TaskSource,
    renderer: Renderer,
    split: Split,
    *,
    seed: int,
    heldout_fraction: float,
    count: int,
    max_documents: int = 0,
    whole: bool = False,
) -> ListedTasks | MadeTasks:
    """Open the tasks of one split. count: held-out tasks to make. whole: all rows are of it.

    Raises DataError where a task does not fit, or where none is left.
    """
    name = source.source
    if source.rows is None:
        assert source.generator is not None
        made = MadeTasks(source.generator, renderer, name, split, seed, heldout_fraction)
        return made if split == "train" else made.some(count)
    rows = source.rows
    if not whole:
        rows = [row for row in rows if split_of(row, heldout_fraction) == split]
    if not rows:
        raise DataError(
            f"none of the {len(source.rows)} tasks of {name} falls into the {split} split with "
            f"data.heldout_fraction {heldout_fraction}; change it, or write more tasks"
        )
    wrong = [(row, told) for row in rows if (told := renderer.complaint(row))]
    if wrong:
        more = f" ({len(wrong) - 1} more do not fit)" if wrong[1:] else ""
        raise DataError(f"{wrong[0][0].where}: {wrong[0][1]}{more}")
    return ListedTasks(rows, renderer, name, seed, max_documents)
