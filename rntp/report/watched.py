"""A running run, as far as its folder tells: what `rntp watch` shows, read as the files grow."""

import json
import os
import statistics
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rntp.config.files import parse_yaml
from rntp.errors import ConfigError
from rntp.run.log import numbered_files
from rntp.run.rollout_files import rollout_files
from rntp.run.tail import LineTail, Tail, json_object
from rntp.runtime.provenance import redact, secret_values

KEPT_STEPS = 2000
_RECENT_STEPS = 20
_MOST_WARNINGS = 3
_TAIL_BYTES = 1 << 18  # of a file of rollouts
_THOUGHTS = 2
ALIVE_S = 60.0
"""A run that gives no sign for so long is said to have stopped."""


@dataclass(frozen=True, slots=True)
class Life:
    """The last sign of life. seconds: how long ago. phase: what the run was doing then."""

    seconds: float
    phase: str


class Watched:
    """One run folder. `refresh` reads what is new; everything else is what was read last."""

    def __init__(self, run_dir: Path) -> None:
        """Raises ConfigError where the folder is none of a run."""
        check_run_folder(run_dir)
        self.run_dir = run_dir
        self._secrets = secret_values()
        self._metrics = Tail(run_dir / "metrics.jsonl")
        self._log = LineTail(run_dir / "log.txt")
        self._evaluation_path: Path | None = None
        self._rollouts_path: Path | None = None
        self._forget()
        self.warnings: deque[str] = deque(maxlen=_MOST_WARNINGS)
        self.config: dict[str, Any] = {}
        self.evaluation: dict[str, Any] | None = None
        self.first_evaluation: dict[str, Any] | None = None
        self.thoughts: list[dict] = []
        self.thoughts_step = 0
        self.checkpoint: tuple[int, float] | None = None
        """The newest whole checkpoint: (step, seconds since it was written)."""
        self.life: Life | None = None

    def _forget(self) -> None:
        self.rows: deque[dict] = deque(maxlen=KEPT_STEPS)
        self.skipped = 0

    def refresh(self) -> None:
        """Read what has been written since the last time. Raises OSError, and ConfigError where
        config.yaml is damaged."""
        self._read_metrics()
        self._read_warnings()
        text = (self.run_dir / "config.yaml").read_text(encoding="utf-8", errors="replace")
        config = parse_yaml(text, str(self.run_dir / "config.yaml"))
        self.config = redact(config if isinstance(config, dict) else {}, self._secrets)
        self._read_evaluation()
        self._read_thoughts()
        self.checkpoint = _newest_checkpoint(self.run_dir / "checkpoints")
        self.life = _life(self.run_dir / "heartbeat" / "rank_0.json")

    @property
    def done(self) -> int:
        """Steps that metrics.jsonl has."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def wanted(self) -> int:
        """Steps that the run is to make; 0 where its config says nothing."""
        return int(self.field("run", "steps") or 0)

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the run gives no sign of life any more."""
        quiet = self.life is None or self.life.seconds > ALIVE_S
        return 0 < self.wanted <= self.done and quiet

    @property
    def eta_s(self) -> float | None:
        """Seconds that the steps to come will take, by the median of the last twenty."""
        recent = [row.get("time/step_s") for row in list(self.rows)[-_RECENT_STEPS:]]
        known = [seconds for seconds in recent if isinstance(seconds, int | float)]
        if not known:
            return None
        return statistics.median(known) * max(0, self.wanted - self.done)

    def field(self, section: str, name: str) -> Any:
        """A field of the run's config; None where it is not there."""
        found = self.config.get(section)
        return found.get(name) if isinstance(found, dict) else None

    def values(self, key: str) -> list[float | None]:
        """A metric, step by step; None where it is missing or not finite."""
        found = [row.get(key) for row in self.rows]
        return [float(v) if isinstance(v, int | float) else None for v in found]

    def parts_s(self) -> dict[str, float]:
        """Mean seconds of the last twenty steps, the whole one first and then part by part."""
        recent = list(self.rows)[-_RECENT_STEPS:]
        found: dict[str, list[float]] = {}
        for row in recent:
            for key, value in row.items():
                if key.startswith("time/") and key.endswith("_s") and value is not None:
                    found.setdefault(key[len("time/") : -len("_s")], []).append(float(value))
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return {"step": means.pop("step"), **means} if "step" in means else means

    def _read_metrics(self) -> None:
        while True:
            rows = self._metrics.read()
            if self._metrics.restarted:
                self._forget()
            if not rows:
                return
            rows = [row for row in redact(rows, self._secrets) if isinstance(row.get("step"), int)]
            self.rows.extend(rows)
            self.skipped += sum(bool(row.get("skipped")) for row in rows)

    def _read_warnings(self) -> None:
        while lines := self._log.lines():
            for line in lines:
                text = line.decode("utf-8", "replace")
                when, _, said = text.partition(" ")
                if said.startswith(("warning: ", "error: ")):
                    self.warnings.append(f"{when[11:16]} {said}")

    def _read_evaluation(self) -> None:
        files = numbered_files(self.run_dir / "eval", "json")
        if not files or files[-1][1] == self._evaluation_path:
            return
        found = _read_json(files[-1][1])
        if found is None:
            return
        self._evaluation_path = files[-1][1]
        self.evaluation = found
        if self.first_evaluation is None and files[0][0] == 0:
            self.first_evaluation = _read_json(files[0][1])

    def _read_thoughts(self) -> None:
        files = rollout_files(self.run_dir)
        if not files:
            return
        step = max(files)
        path = files[step][-1]  # of many ranks, the last one's
        if path == self._rollouts_path:
            return
        rows = last_rows(path, _THOUGHTS)
        if rows:
            self._rollouts_path, self.thoughts_step = path, step
            self.thoughts = redact(rows, self._secrets)


def check_run_folder(run_dir: Path) -> None:
    """Raise ConfigError, with the remedy, where the folder is none that `rntp train` made."""
    if (run_dir / "config.yaml").is_file():
        return
    what = "it has no config.yaml" if run_dir.is_dir() else "there is no such folder"
    raise ConfigError(
        f"{run_dir} is no run folder: {what}; name the folder that `rntp train` writes, which is "
        "run.dir of its config, or --run-dir"
    )


def last_rows(path: Path, count: int) -> list[dict]:
    """Return the last objects of a JSON Lines file, reading no more of its end than they take.

    A packed file, which has no end to be read alone, is left out: it is old.
    """
    if path.suffix == ".gz":
        return []
    whole: list[bytes] = []
    try:
        with path.open("rb") as file:
            begin, length = file.seek(0, os.SEEK_END), _TAIL_BYTES
            while begin > 0 and len(whole) < count:
                begin = max(0, file.seek(0, os.SEEK_END) - length)
                file.seek(begin)
                lines = file.read().split(b"\n")[:-1]
                whole = lines[1:] if begin else lines
                length *= 8
    except FileNotFoundError:  # a resume has taken it away
        return []
    return [row for row in map(json_object, whole[-count:]) if row is not None]


def _newest_checkpoint(folder: Path) -> tuple[int, float] | None:
    found = []
    for path in folder.glob("step_*/COMMIT.json"):
        number = path.parent.name.removeprefix("step_")
        if number.isdigit():
            found.append((int(number), path))
    if not found:
        return None
    step, path = max(found)
    try:
        return step, max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _life(heartbeat: Path) -> Life | None:
    beat = _read_json(heartbeat)
    if beat is None or not isinstance(beat.get("time"), int | float):
        return None
    return Life(max(0.0, time.time() - beat["time"]), str(beat.get("phase", "")))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
