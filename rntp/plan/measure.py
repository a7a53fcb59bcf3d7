"""Measures runs as users start them: `rntp train` of a case, on as many processes as it has ranks.

The first step of a run is not counted: libraries choose and allocate in it. Times are the medians
of the others; memory is the most of any step. Where other programs share the cores, the seconds of
a step on the clock say little: each is taken times the share of the time in which the step could
have run that it did (`time/cpu_share`), so that it is about what the step would take on cores of
its own. Both are kept.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rntp.errors import RntpError
from rntp.plan.cases import Case
from rntp.plan.work import PHASES
from rntp.run.log import read_metrics
from rntp.runtime.files import write_text_atomic

Measured = dict[str, Any]
_TAIL = 2000


class RunFailed(RntpError):
    """A measured run did not end well."""


def measure(case: Case, *, dtype: str, device: str, threads: int = 1) -> Measured:
    """Run a case and give its seconds by phase, seconds of a step, and peak memory in GB.

    threads: of each process, on a CPU. Raises RunFailed with the end of what the run said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case.prepare(folder)
        config = folder / "config.yaml"
        config.write_text(json.dumps(case.run(folder, dtype, device)), encoding="utf-8")
        load = os.getloadavg()[0]
        _train(config, case.ranks, threads)
        rows = read_metrics(folder / "run")
    return {
        "case": case.as_dict(),
        **summary(rows),
        "dtype": dtype,
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> Measured:
    """Take the medians over the steps but for the first: seconds on cores of its own by phase and
    in all (step_s), and of a step on the clock (clock_s)."""
    share = [row.get("time/cpu_share", 1.0) for row in rows[1:]]
    counted = [phases(row) for row in rows[1:]]
    return {
        "seconds": {
            p: statistics.median(row[p] * own for row, own in zip(counted, share, strict=True))
            for p in PHASES
        },
        "step_s": statistics.median(
            row["time/step_s"] * own for row, own in zip(rows[1:], share, strict=True)
        ),
        "clock_s": statistics.median(row["time/step_s"] for row in rows[1:]),
        "cpu_share": statistics.median(share),
        "memory_gb": max(row["memory/peak_gb"] for row in rows[1:]),
        "tflop": statistics.median(row["compute/tflop"] for row in rows[1:]),
        "steps": len(counted),
    }


def phases(row: Mapping[str, Any]) -> dict[str, float]:
    """Cut the seconds of a step into those of its phases."""
    rollout, update = row.get("time/rollout_s", 0.0), row["time/update_s"]
    train = row["time/forward_s"] + row["time/backward_s"]
    rest = row["time/step_s"] - rollout - update - train
    return {"rollout": rollout, "train": train, "update": update, "rest": max(rest, 0.0)}


def measure_all(
    cases: Sequence[Case],
    kept: Path,
    *,
    dtype: str,
    device: str,
    say: Callable[[str], None],
    rounds: int = 1,
) -> list[Measured]:
    """Measure each case, and keep what was measured in a file: the same command goes on from there.

    rounds: times that all are measured, in turns; each case's medians over its rounds count.
    """
    done: list[Measured] = json.loads(kept.read_text()) if kept.is_file() else []
    for turn in range(rounds):
        for number, case in enumerate(cases, 1):
            of_case = [m for m in done if m["case"] == case.as_dict() and m["dtype"] == dtype]
            if len(of_case) > turn:
                continue
            found = measure(case, dtype=dtype, device=device)
            done.append(found)
            write_text_atomic(kept, json.dumps(done, indent=1) + "\n")
            say(
                f"{turn + 1}/{rounds} {number}/{len(cases)} {case.name}: {found['step_s']:.3f} s a "
                f"step, load {found['load_average'][1]}"
            )
    return [median_of(case, done, dtype) for case in cases]


def median_of(case: Case, done: Sequence[Measured], dtype: str) -> Measured:
    """Take the median over the rounds of a case."""
    found = [m for m in done if m["case"] == case.as_dict() and m["dtype"] == dtype]
    numbers = ("step_s", "clock_s", "cpu_share", "memory_gb", "tflop")
    return {
        "case": case.as_dict(),
        "seconds": {p: statistics.median(m["seconds"][p] for m in found) for p in PHASES},
        **{name: statistics.median(m[name] for m in found) for name in numbers},
        "rounds": len(found),
        "load_average": [max(x) for x in zip(*(m["load_average"] for m in found), strict=True)],
    }


def _train(config: Path, ranks: int, threads: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if ranks > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "rntp", "train", str(config), "--resume", "never"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        )
    said = [process.communicate()[0].decode("utf-8", "replace") for process in started]
    for rank, process in enumerate(started):
        if process.returncode:
            raise RunFailed(
                f"rank {rank} of the measured run {config} ended with {process.returncode}: "
                f"{said[rank][-_TAIL:]}"
            )
