"""Who runs the tasks of a preparation: this machine, a Ray cluster or a Slurm cluster.

All three are datatrove's. Each is a function of (steps, tasks, folder for logs) that comes back
once the tasks have run, so that one step may read what the one before it wrote. Nodes have to see
the output folder and the sources under the same names.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rntp.errors import ConfigError, DataError
from rntp_data_prep.packages import module

Execute = Callable[[list[Any], int, Path], None]
"""Runs a datatrove pipeline: (steps, tasks, folder for logs)."""

_POLL_S = 3.0
_NEEDED = ("partition", "time")


def local(workers: int) -> Execute:
    """datatrove's executor for this machine; workers: tasks at a time."""

    def execute(steps: list[Any], tasks: int, logs: Path) -> None:
        from datatrove.executor import LocalPipelineExecutor

        # Parts have records of their own, which say more than datatrove's empty marker files.
        LocalPipelineExecutor(
            pipeline=steps,
            tasks=tasks,
            workers=min(workers, tasks),
            logging_dir=str(logs),
            skip_completed=False,
        ).run()

    return execute


def ray(workers: int) -> Execute:
    """datatrove's executor for Ray, on the cluster at `RAY_ADDRESS`, else on one of its own here;
    workers: tasks at a time, 0 for as many as the cluster has slots. Raises ConfigError where Ray
    is not installed."""
    cluster = module("ray")

    def execute(steps: list[Any], tasks: int, logs: Path) -> None:
        from datatrove.executor.ray import RayPipelineExecutor

        if not cluster.is_initialized():
            cluster.init(log_to_driver=False, configure_logging=False)
        RayPipelineExecutor(
            pipeline=steps,
            tasks=tasks,
            workers=workers or -1,
            logging_dir=_emptied(logs),
            skip_completed=False,
        ).run()
        _check_all_ended(tasks, logs)

    return execute


def slurm(workers: int, options: Mapping[str, str]) -> Execute:
    """datatrove's executor for Slurm: a job array a step, waited for.

    workers: tasks at a time, 0 for no limit. options: of sbatch without their dashes, `partition`
    and `time` among them. Raises ConfigError where one of these is missing.
    """
    if missing := [name for name in _NEEDED if not options.get(name)]:
        raise ConfigError(
            f"Slurm wants to know {' and '.join(missing)}: give "
            f"{' '.join(f'--sbatch {name}=…' for name in missing)}"
        )
    partition, limit = (options[name] for name in _NEEDED)
    more = {name: text for name, text in options.items() if name not in _NEEDED}

    def execute(steps: list[Any], tasks: int, logs: Path) -> None:
        from datatrove.executor import SlurmPipelineExecutor

        here = Path(sys.executable).parent
        executor = SlurmPipelineExecutor(
            pipeline=steps,
            tasks=tasks,
            workers=workers or -1,
            partition=partition,
            time=limit,
            qos=None,
            sbatch_args=more,
            job_name="rntp-prep",
            env_command=f"export PATH={here}:$PATH PYTHONPATH={os.environ.get('PYTHONPATH', '')}",
            logging_dir=_emptied(logs),
            skip_completed=False,
        )
        # A job that would wait for ever behind a failed one.
        executor.launch_merge_stats = lambda: None
        executor.run()
        _wait_for(executor.job_id)
        _check_all_ended(tasks, logs)

    return execute


def _wait_for(job: str) -> None:
    """Come back when a job has ended; take it out of the queue where the wait is broken off."""
    try:
        while _queued(job):
            time.sleep(_POLL_S)
    except BaseException:
        # Nobody would make a corpus of what its tasks write; the same command starts them again.
        subprocess.run(["scancel", job], check=False)
        raise


def _queued(job: str) -> bool:
    """Whether tasks of a job wait or run. What Slurm does not know any more has ended."""
    asked = ["squeue", "--noheader", "--job", job]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.returncode == 0 and bool(found.stdout.strip())


def _emptied(logs: Path) -> str:
    """The folder for logs, without the markers of an earlier start."""
    shutil.rmtree(logs / "completions", ignore_errors=True)
    return str(logs)


def _check_all_ended(tasks: int, logs: Path) -> None:
    """Raise DataError unless every task has left datatrove's marker of a good end."""
    left = [n for n in range(tasks) if not (logs / "completions" / f"{n:05d}").exists()]
    if left:
        raise DataError(
            f"{len(left)} of {tasks} tasks did not end well; what they said is under {logs}. The "
            "same command goes on with those that are done"
        )
