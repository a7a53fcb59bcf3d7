"""What a try on an engine did and found: told while it goes on, and written down."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rntp.plan.cases import Case
from rntp.run.log import read_metrics

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CASE = Case(hidden=64, layers=2, vocabulary=256, context=96, budget=8, docs=2, steps=24)
"""A run of seconds, which is stopped and killed and has to come to the same numbers."""


class Transcript:
    """Lines with the seconds since the beginning, and what was checked."""

    def __init__(self, name: str) -> None:
        self.name, self.began = name, time.monotonic()
        self.lines: list[str] = []
        self.checks: dict[str, bool] = {}

    def say(self, text: str) -> None:
        """Tell what is done."""
        shown = re.sub(rf"{tempfile.gettempdir()}/rntp-\w+-\w+", "FOLDER", text)
        for line in shown.splitlines() or [""]:
            self.lines.append(f"{time.monotonic() - self.began:6.1f} s  {line}")
            print(self.lines[-1], flush=True)

    def check(self, what: str, true: bool) -> None:
        """Note whether something is as it should be."""
        self.checks[what] = bool(true)
        self.say(f"{'ok' if true else 'WRONG'}: {what}")

    def write(self) -> bool:
        """Write results/NAME.txt and NAME.json; whether all was right."""
        RESULTS.mkdir(exist_ok=True)
        good = bool(self.checks) and all(self.checks.values())
        found = {"command": f"make cluster-{self.name}", "good": good, "checks": self.checks}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / f"{self.name}.txt").write_text("\n".join(self.lines) + "\n")
        return good


def prepare(folder: Path, case: Case = CASE, every: int = 4) -> Path:
    """Write model, corpus and config of the run; the config."""
    case.prepare(folder)
    raw = case.run(folder, "float32", "cpu")
    raw["checkpoint"] = {"every_steps": every, "keep": 2}
    config = folder / "config.yaml"
    config.write_text(json.dumps(raw, indent=1))
    return config


def numbers(run: Path) -> list[dict[str, Any]]:
    """Return what does not depend on the machine's mood: metrics without times."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in read_metrics(run)
    ]


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same numbers in every step, to the last digit."""
    return numbers(one) == numbers(other) != []


def environment() -> dict[str, str]:
    """Variables with which `rntp` is found, as this Python has it."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def rntp(*arguments: str, **named: Any) -> "subprocess.CompletedProcess[str]":
    """Run the program to its end."""
    command = [sys.executable, "-m", "rntp", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, **named)


def steps_done(run: Path) -> int:
    """Steps in the record of a run."""
    return len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0


def wait_for_step(run: Path, step: int, seconds: float = 300) -> None:
    """Wait until a run has done so many steps. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while steps_done(run) < step:
        if time.monotonic() > end:
            raise TimeoutError(f"{run} has not come to step {step} in {seconds:g} s")
        time.sleep(0.3)


def emptied(folder: Path) -> Path:
    """Make a folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
