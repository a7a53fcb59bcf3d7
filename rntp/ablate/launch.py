"""Starts the runs as processes, a few at a time, and sees them to their end."""

import os
import shlex
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from rntp.ablate.devices import VISIBLE, least_used, visible_gpus
from rntp.ablate.grid import Run, state, steps_done
from rntp.errors import Preempted
from rntp.run.log import duration
from rntp.runtime.files import json_line
from rntp.runtime.provenance import redact, secret_values
from rntp.runtime.signals import StopRequest

_POLL_S = 0.2
_TAIL_LINES = 12
_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Ended:
    """A run's process that has ended. exit_code: as a shell tells it, 128 + n for signal n."""

    run: Run
    exit_code: int
    wall_s: float


@dataclass(slots=True)
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    began: str
    clock: float
    load: float
    gpu: str | None


def launch(
    runs: Sequence[Run], *, jobs: int, console: Console, on_finished: Callable[[Run], None]
) -> list[Ended]:
    """Run all of them, `jobs` at a time; one that fails does not stop the others.

    Where there are GPUs, each run sees one, its own while there are as many as jobs.
    on_finished is called after each that ends well. SIGINT and SIGTERM are passed on, so that the
    runs save; then this raises Preempted.
    """
    waiting, ended = deque(runs), list[Ended]()
    children: list[_Child] = []
    gpus = visible_gpus(os.environ, torch.cuda.device_count())
    threads = max(1, _cores() // max(1, min(jobs, len(runs))))
    told = False
    with StopRequest() as stop, Board(console, runs) as board:
        try:
            while children or (waiting and not stop.received):
                while waiting and len(children) < jobs and not stop.received:
                    run = waiting.popleft()
                    on_gpu = gpus if run.config.model.device != "cpu" else []
                    gpu = least_used(on_gpu, [child.gpu for child in children])
                    children.append(_start(run, threads, gpu))
                    board.started(children[-1].run)
                if stop.received and not told:
                    told = True
                    plural = "s" if len(children) > 1 else ""
                    board.say(f"{stop.received}: waiting for {len(children)} run{plural} to save")
                    _terminate(children)
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    ended.append(_end(child))
                    board.ended(ended[-1], stopped=stop.received is not None)
                    if ended[-1].exit_code == 0:
                        on_finished(child.run)
                board.refresh([child.run for child in children])
                time.sleep(_POLL_S)
        finally:
            # Not only after a signal: an error here must not leave runs behind.
            _terminate(children)
            for child in children:
                child.process.wait()
    if stop.received:
        finished = sum(state(run) == "finished" for run in runs)
        raise Preempted(
            f"stopped by {stop.received}, {finished} of {len(runs)} runs are finished; the same "
            "command with --resume goes on"
        )
    return ended


def last_lines(run: Run) -> list[str]:
    """The end of what a run printed, without what a terminal would obey."""
    if not run.log.is_file():
        return []
    with run.log.open("rb") as file:
        file.seek(max(0, run.log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = redact(text, secret_values()).splitlines()[-_TAIL_LINES:]
    return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def _start(run: Run, threads: int, gpu: str | None) -> _Child:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONUNBUFFERED": "1",
    }
    if gpu is not None:
        environment[VISIBLE] = gpu
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches the whole group of a terminal; a run that got it from there and once
            # more from here would end without saving.
            process_group=0,
        )
    return _Child(run, process, _now(), time.monotonic(), os.getloadavg()[0], gpu)


def _end(child: _Child) -> Ended:
    code = terminated(child.process.returncode)
    ended = Ended(child.run, code, time.monotonic() - child.clock)
    load = [round(load, 2) for load in (child.load, os.getloadavg()[0])]
    record_end(ended, {"gpu": child.gpu, "load_average": load}, child.began)
    return ended


def terminated(code: int) -> int:
    """An exit code as a shell tells it: 128 + n for signal n."""
    return 128 - code if code < 0 else code


def record_end(ended: Ended, more: Mapping[str, object], began: str = "") -> None:
    """Write down a start of a run that has ended, beside its folder."""
    record = {
        "started": began or _now(ended.wall_s),
        "ended": _now(),
        "wall_s": round(ended.wall_s, 1),
        "exit_code": ended.exit_code,
        **more,
        "command": shlex.join(["rntp", *ended.run.arguments]),
    }
    with ended.run.starts.open("ab") as file:
        file.write(json_line(redact(record, secret_values())))


def _terminate(children: Sequence[_Child]) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _now(ago_s: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=ago_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Board:
    """What the grid says: a line at every start and end; on a terminal, bars of what runs."""

    def __init__(self, console: Console, runs: Sequence[Run]) -> None:
        self._console = console
        self._total = len(runs)
        self._num_started = self._num_ended = 0
        self._began = time.monotonic()
        # Time is told by steps, of which runs have many, and not by runs, of which few end.
        self._steps = {run.label: max(0, run.config.run.steps - steps_done(run)) for run in runs}
        self._left = dict(self._steps)
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=24),
                # Names of arms may hold brackets, which are markup elsewhere.
                TextColumn("{task.description}", markup=False),
                console=console,
                refresh_per_second=4,
                transient=True,
            )
            self._all = self._progress.add_task("runs", total=self._total)

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

    def say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def started(self, run: Run) -> None:
        self._num_started += 1
        self.say(f"start {self._num_started}/{self._total}  {run.label}")
        if self._progress is not None:
            total = run.config.run.steps
            self._bars[run.label] = self._progress.add_task(run.label, total=total)

    def ended(self, ended: Ended, *, stopped: bool) -> None:
        """stopped: whether it was asked to end."""
        label = ended.run.label
        self._num_ended += 1
        if ended.exit_code != 0:  # the steps that it never did tell nothing about time
            self._steps[label] -= self._left[label]
        self._left[label] = 0
        if self._progress is not None:
            self._progress.remove_task(self._bars.pop(label))
        took = duration(ended.wall_s)
        if ended.exit_code == 0:
            self.say(f"done {self._num_ended}/{self._total}  {label}  {took}  eta {self._eta()}")
        elif stopped:
            self.say(f"stopped  {label}  after {took}")
        else:
            self.say(
                f"FAILED  {label}  exit code {ended.exit_code} after {took}; {ended.run.log}",
                "bold red",
            )

    def refresh(self, running: Sequence[Run]) -> None:
        """Look how far the runs are."""
        if self._progress is None:
            return
        for run in running:
            done = min(steps_done(run), run.config.run.steps)
            left = run.config.run.steps - done
            self._left[run.label] = min(self._left[run.label], left)
            self._progress.update(self._bars[run.label], completed=done)
        self._progress.update(
            self._all, completed=self._num_ended, description=f"runs, eta {self._eta()}"
        )

    def _eta(self) -> str:
        left, total = sum(self._left.values()), sum(self._steps.values())
        if left == total:
            return "?"
        return duration((time.monotonic() - self._began) * left / (total - left))
