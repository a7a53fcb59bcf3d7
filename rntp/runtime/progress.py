"""Bars with the time that is left, for whoever sits at the terminal.

They are on standard error, of the first rank alone; where no terminal is, a line a minute stands
for them, so that the logs of long works, too, tell how far they are.
"""

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_S = 60.0  # between two lines of a log


def is_shown() -> bool:
    """Tell whether somebody sees bars of this process."""
    return sys.stderr.isatty() and _is_first()


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def hide_library_bars() -> None:
    """Take away the bars of downloads and of loading weights, for good: a run's own begins."""
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.disable_progress_bar()


class Bars:
    """A bar for each part of a long work. A context manager that is called as the work goes on.

    with Bars() as bars:
        for done, shard in enumerate(shards):
            bars("verify", done, len(shards))
    """

    def __init__(self, console: Console | None = None) -> None:
        """console: instead of standard error where `is_shown`."""
        if console is None and is_shown():
            console = Console(stderr=True)
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._told = time.monotonic()
        self._progress: Progress | None = None
        if console is not None and console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """So much of a part is done. The first call of a part makes its bar."""
        if self._progress is None:
            self._tell(name, done, total)
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def _tell(self, name: str, done: int, total: int) -> None:
        """Print a line once a minute."""
        now = time.monotonic()
        began = self._began.setdefault(name, now)
        if now - self._told < LINE_S or not done or not _is_first():
            return
        self._told = now
        left = (now - began) / done * (total - done)
        print(f"{name} {done}/{total}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
