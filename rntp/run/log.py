"""Everything a run says and writes down while it runs.

Console and log.txt for people; metrics.jsonl, rollouts/ and manifest.json for programs. Secrets
from the environment are cut out of all of them.
"""

import contextlib
import json
import os
import re
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.run.mirrors import Mirrors
from rntp.run.rollout_files import forget_after
from rntp.run.rollout_files import read_rollouts as read_rollouts
from rntp.run.rollout_writer import RolloutWriter
from rntp.runtime.faults import fault_point
from rntp.runtime.files import (
    complete_lines,
    json_line,
    parse_line,
    read_json_lines,
    write_bytes_atomic,
    write_json,
)
from rntp.runtime.progress import hide_library_bars
from rntp.runtime.provenance import environment, redact, secret_values
from rntp.show import printable

Metrics = Mapping[str, float | int | str]
Level = Literal["info", "warning", "error"]

_RECENT_STEPS = 20
_LONG_PHASE_S = 5.0  # of a phase that took so long it is told when it will end
# Bytes of metrics that wait in memory for a disk that takes nothing.
_MOST_WAITING = 1 << 28
_STYLES = {"info": "", "warning": "yellow", "error": "bold red"}


class _SteadyConsole(Console):
    """A console that may lose its reader (`rntp train … | head`): the run goes on, and log.txt has
    all that it says."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunLog:
    """The voice and the record of one run folder. One process writes to a folder at a time.

    Use it as a context manager. A trainer that continues calls `rewind` before the first `step`.
    """

    def __init__(
        self, run_dir: Path, config: Config, *, console: Console | None = None, ranks: int = 1
    ) -> None:
        """Creates `run_dir` where it is missing. Raises OSError, and ConfigError where a
        mirror's package is missing. ranks: that write down their own thoughts, this one the first.
        """
        self._dir = run_dir
        self._config = config
        self._console = console if console is not None else _SteadyConsole()
        self._secrets = secret_values()
        self._records = RolloutWriter(run_dir, self._secrets, 0, ranks)
        self._text: TextIO = (run_dir / "log.txt").open("a", encoding="utf-8", errors="replace")
        self._metrics: FileIO | None = None
        self._waiting = b""  # of metrics.jsonl
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._phase = ""
        self._phase_begin_s = 0.0
        self._phase_first = self._phase_done = 0
        self._total_steps = config.run.steps
        self._recent_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._mirrors = Mirrors(run_dir, config, self._secrets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(exit_code=0 if kind is None else getattr(error, "exit_code", 1))

    def close(self, exit_code: int = 0) -> None:
        """Take the bar off the screen, close the files, finish the mirrors."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._try(self._write_metrics)
        self._records.close()
        self._tell_refusal()
        self._close_metrics()
        self._mirrors.close(exit_code)
        self._tell_mirrors()
        with contextlib.suppress(OSError):  # what waits for the disk has been printed
            self._text.close()

    def message(self, text: str, level: Level = "info") -> None:
        """Say a line on the console and keep it in log.txt with the UTC time."""
        self._say(text, level)

    def begin(self, done_steps: int, total_steps: int) -> None:
        """Start the progress bar; without a terminal only the lines of the steps are printed."""
        self._total_steps = total_steps
        self._mirrors.wake()  # there may be steps of the last start that one of them missed
        if not self._console.is_terminal:
            return
        hide_library_bars()  # a third model that loads later would tear this one apart
        self._progress = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("eta {task.fields[eta]}"),
            TextColumn("[dim]{task.description}"),
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done_steps, eta="?")
        self._progress.start()

    def phase(self, name: str, done: int, total: int) -> None:
        """Show what goes on inside the step: rollout, forward, update, evaluate."""
        if self._progress is None:
            return
        if name != self._phase or done < self._phase_done:
            self._phase, self._phase_begin_s = name, time.monotonic()
            self._phase_first = done
        self._phase_done = done
        told = f"{name} {done}/{total}"
        passed, gained = time.monotonic() - self._phase_begin_s, done - self._phase_first
        if gained > 0 and passed > _LONG_PHASE_S and done < total:
            told += f", eta {duration(passed * (total - done) / gained)}"
        self._progress.update(self._task, description=told)

    def step(self, metrics: Metrics) -> None:
        """Append one object to metrics.jsonl and print one line. `metrics` must hold `step`.

        What the disk does not take waits in memory for the next call and for `sync`, and the
        console says so. Raises OSError when too much of it waits.
        """
        step = int(metrics["step"])
        clean = redact(dict(metrics), self._secrets)
        self._waiting += json_line(clean)
        self._try(self._write_metrics)
        if "time/step_s" in metrics:
            self._recent_s.append(float(metrics["time/step_s"]))
        eta = self._eta(step)
        self._say(f"{step_line(metrics, self._total_steps)}  eta {eta}", "info")
        if self._progress is not None:
            self._progress.update(self._task, completed=step, eta=eta, description="")
        self._mirrors.wake()
        self._tell_mirrors()

    def rollouts(self, step: int, rows: Iterable[dict]) -> None:
        """Write the thoughts of one step behind the training; see `RolloutWriter.add`."""
        self._tell_refusal()
        self._records.add(step, rows)

    def sync(self) -> None:
        """All metrics and rollouts are on the disk: call it before what relies on them.

        Raises OSError when the disk does not take them.
        """
        self._write_metrics()
        try:
            self._records.sync()
        finally:
            self._tell_refusal()
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())

    def _tell_mirrors(self) -> None:
        for note in self._mirrors.notes():
            self._say(note, "warning")

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if len(self._waiting) > _MOST_WAITING:
                raise
            self._tell_waiting(error)

    def _tell_refusal(self) -> None:
        if error := self._records.refusal():
            self._tell_waiting(error)

    def _tell_waiting(self, error: OSError) -> None:
        waiting = len(self._waiting) + self._records.waiting_bytes
        self._say(
            f"the record of the run cannot be written ({error}); {waiting} bytes wait in "
            f"memory and are tried again; free some space in {self._dir}",
            "error",
        )

    def _write_metrics(self) -> None:
        if not self._waiting:
            return
        fault_point("metrics.before")
        if self._metrics is None:
            self._metrics = FileIO(self._dir / "metrics.jsonl", "a")
        while self._waiting:
            # Part of a line may get in before the disk is full; the rest of it follows later.
            self._waiting = self._waiting[self._metrics.write(self._waiting) :]

    def rewind(self, step: int) -> None:
        """Forget everything after `step` done steps: metrics, rollouts, evaluations, skips.

        A last line of metrics.jsonl that a kill left half-written goes too. Raises ConfigError
        when a line before it is damaged.
        """
        self._close_metrics()
        self._waiting = b""
        self._records.forget()
        path = self._dir / "metrics.jsonl"
        if path.exists():
            lines = complete_lines(path)
            kept = [line for line, n in zip(lines, _steps(path, lines), strict=True) if n <= step]
            write_bytes_atomic(path, b"".join(kept))
        forget_after(self._dir, step)
        for folder in ("eval", "quarantine"):
            for number, file in numbered_files(self._dir / folder, "json"):
                if number > step:
                    file.unlink()

    def write_manifest(
        self, facts: Mapping[str, object], start: Mapping[str, object] | None = None
    ) -> None:
        """Write manifest.json: `facts` beside the versions, source, machine and command.

        A manifest that is there keeps its content, but for the `segments` of its data, which are
        those of now. `starts` gains an entry for this start, which says after which step of
        metrics.jsonl it goes on: call `rewind` before. start: what is true of this start only.
        """
        path = self._dir / "manifest.json"
        now = _now()
        here = environment(self._config.model.device)
        begins = {"started": now, "from_step": self._last_step(), **here, **(start or {})}
        if path.exists():
            manifest = read_manifest(self._dir)
            manifest["starts"] = [*starts_of(manifest), begins]
            if "segments" in facts:
                manifest["segments"] = facts["segments"]
        else:
            manifest = {"created": now, **here, **(start or {}), **facts, "starts": [begins]}
        write_json(path, redact(manifest, self._secrets))

    def _say(self, text: str, level: str) -> None:
        text = printable(redact(text, self._secrets))
        if level != "info":
            text = f"{level}: {text}"
        # An indented second line cannot pass for an entry of its own.
        indented = text.replace("\n", "\n    ")
        # A full disk must not end the run for its log: the console still says it, and the text
        # stays in the buffer for the next line.
        with contextlib.suppress(OSError):
            self._text.write(f"{_now()} {indented}\n")
            self._text.flush()
        self._console.print(Text(text, style=_STYLES[level]), soft_wrap=True)

    def _eta(self, step: int) -> str:
        if not self._recent_s:
            return "?"
        return duration(statistics.median(self._recent_s) * max(self._total_steps - step, 0))

    def _last_step(self) -> int:
        metrics = read_metrics(self._dir)
        return int(metrics[-1]["step"]) if metrics else 0

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


class NoLog:
    """What a rank other than the first has in place of a RunLog: it says nothing, and writes down
    nothing but its thoughts. records: where to; without, these neither.
    """

    def __init__(self, records: RolloutWriter | None = None) -> None:
        self._records = records

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._records:
            self._records.close()

    def message(self, text: str, level: Level = "info") -> None: ...

    def begin(self, done_steps: int, total_steps: int) -> None: ...

    def phase(self, name: str, done: int, total: int) -> None: ...

    def step(self, metrics: Metrics) -> None: ...

    def rollouts(self, step: int, rows: Iterable[dict]) -> None:
        if self._records:
            self._records.add(step, rows)

    def sync(self) -> None:
        if self._records:
            self._records.sync()

    def rewind(self, step: int) -> None:
        if self._records:
            self._records.forget()

    def write_manifest(
        self, facts: Mapping[str, object], start: Mapping[str, object] | None = None
    ) -> None: ...


def open_log(
    run_dir: Path, config: Config, rank: int, ranks: int, console: Console | None = None
) -> RunLog | NoLog:
    """Make what a rank of so many says and writes with; use it as a context manager."""
    if rank == 0:
        return RunLog(run_dir, config, console=console, ranks=ranks)
    return NoLog(RolloutWriter(run_dir, secret_values(), rank, ranks))


def step_line(metrics: Metrics, total_steps: int) -> str:
    """One readable line for a step; what is not among the metrics is left out."""

    def has(*keys: str) -> bool:
        return all(key in metrics for key in keys)

    def number(key: str, form: str) -> str:
        return format(float(metrics[key]), form)

    parts = [f"step {int(metrics['step']):>{len(str(total_steps))}}/{total_steps}"]
    if has("skipped") and float(metrics["skipped"]):
        parts.append(f"SKIPPED: not finite, updates dropped: {int(metrics['skipped'])}")
    if has("reward/mean"):
        sem = f"±{number('reward/sem', '.3f')}" if has("reward/sem") else ""
        parts.append(f"reward {number('reward/mean', '.3f')}{sem}")
    if has("gain/mean"):
        parts.append(f"gain {number('gain/mean', '+.3f')}")
    classes = [key for key in metrics if key.startswith("class/") and key.endswith("/gain")]
    if classes:
        gains = (f"{key.split('/')[1].replace('_', ' ')} {number(key, '+.2f')}" for key in classes)
        parts.append(f"({', '.join(gains)})")
    if has("nll/no_think", "nll/think"):
        parts.append(f"nll {number('nll/no_think', '.3f')}→{number('nll/think', '.3f')}")
    if has("thought/tokens_mean", "thought/closed_frac"):
        closed = number("thought/closed_frac", ".0%")
        parts.append(f"think {number('thought/tokens_mean', '.1f')} tok {closed} closed")
    for label, key, form in (
        ("kl", "kl/sampler", ".4f"),
        ("H", "entropy/thought", ".2f"),
        ("grad", "grad_norm", ".2f"),
        ("lr", "lr", ".1e"),
    ):
        if has(key):
            parts.append(f"{label} {number(key, form)}")
    if has("time/step_s"):
        seconds = float(metrics["time/step_s"])
        if has("tokens/tree") and seconds > 0:
            parts.append(f"{float(metrics['tokens/tree']) / seconds:.0f} tok/s")
        parts.append(f"{seconds:.1f} s")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people: 9s, 3m24s, 2h05m, 3d04h."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m{whole % 60:02d}s"
    return f"{whole}s"


def read_metrics(run_dir: Path) -> list[dict]:
    """The objects of metrics.jsonl, without a half-written last line; [] before the first step.

    Raises ConfigError that names the file and the line when it is damaged.
    """
    return _read_lines(run_dir / "metrics.jsonl")


def read_manifest(run_dir: Path) -> dict:
    """The object in manifest.json. Raises ConfigError when it is missing or damaged."""
    path = run_dir / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{run_dir} has no manifest.json") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return manifest


def provenance_of(run_dir: Path) -> dict[str, Any]:
    """Say which code, config and corpora a run is of, for tables of several runs. Raises
    ConfigError as `read_manifest` does."""
    facts = read_manifest(run_dir)
    return {
        "commit": facts["git"],
        "versions": facts["versions"],
        "config_digest": facts["config_digest"],
        "corpora": [segment["corpus"] for segment in facts["segments"]],
    }


def starts_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the starts of a run by its manifest, the first one first.

    Manifests of older versions have the later ones under `segments`, and the first at the top.
    """
    if "starts" in manifest:
        return list(manifest["starts"])
    later = [part for part in manifest.get("segments", []) if "started" in part]
    first = {"started": manifest.get("created"), "from_step": 0}
    known = ("versions", "git", "device", "devices", "world_size", "threads", "command")
    return [first | {key: manifest[key] for key in known if key in manifest}, *later]


def numbered_files(folder: Path, ending: str) -> list[tuple[int, Path]]:
    """(step, path) of every step_<number>.<ending> in a folder, by step; [] without a folder."""
    pattern = re.compile(rf"step_(\d+)\.{re.escape(ending)}")
    found = (
        (match, path)
        for path in folder.glob(f"step_*.{ending}")
        if (match := pattern.fullmatch(path.name))
    )
    return sorted((int(match[1]), path) for match, path in found)


def _read_lines(path: Path) -> list[dict]:
    try:
        return read_json_lines(path) if path.exists() else []
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _steps(path: Path, lines: list[bytes]) -> list[int]:
    try:
        metrics = [parse_line(path, number, line) for number, line in enumerate(lines, 1)]
    except ValueError as error:
        raise ConfigError(f"{error}; mend or remove the file to go on") from error
    if not all(isinstance(row.get("step"), int) for row in metrics):
        raise ConfigError(f"{path}: a line has no `step`; mend or remove the file to go on")
    return [row["step"] for row in metrics]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
