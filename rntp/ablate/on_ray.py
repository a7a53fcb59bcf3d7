"""Starts the runs of a grid as tasks of a Ray cluster (extra `ray`).

A run is the same process with the same folder as elsewhere; Ray says where it may start and keeps a
GPU for it. Nodes share a file system, and Python finds `rntp` on each of them. A node that is lost
costs the steps since a run's last checkpoint: Ray starts the task again, and the run resumes.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rntp.ablate.grid import Run
from rntp.ablate.launch import Board, Ended, record_end, terminated
from rntp.errors import ConfigError, Preempted
from rntp.runtime.signals import StopRequest

_POLL_S = 1.0
LOST_NODES = 3  # times that a task is started again


def launch_on_ray(
    runs: Sequence[Run], *, jobs: int, console: Console, on_finished: Callable[[Run], None]
) -> list[Ended]:
    """Run all of them on the cluster that RAY_ADDRESS names, or on one of this machine's cores.

    jobs: at a time. As `rntp.ablate.launch.launch`, with the same record of every start. Raises
    ConfigError without the package, and Preempted once the runs have saved.
    """
    ray = _ray()
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(log_to_driver=False, configure_logging=False)
    try:
        return _launch(ray, runs, jobs, console, on_finished)
    finally:
        if begun_here:
            ray.shutdown()


def _launch(
    ray: Any, runs: Sequence[Run], jobs: int, console: Console, on_finished: Callable[[Run], None]
) -> list[Ended]:
    waiting, ended = list(runs), list[Ended]()
    started: dict[Any, tuple[Run, float]] = {}
    gpus = ray.cluster_resources().get("GPU", 0)
    told = False
    with StopRequest() as stop, Board(console, runs) as board:
        while started or (waiting and not stop.received):
            while waiting and len(started) < jobs and not stop.received:
                run = waiting.pop(0)
                run.folder.parent.mkdir(parents=True, exist_ok=True)
                need = 1 if gpus and run.config.model.device != "cpu" else 0
                task = ray.remote(num_cpus=1, num_gpus=need, max_retries=LOST_NODES)(run_process)
                found = task.remote(run.command, str(run.log.resolve()), os.getcwd(), _carried())
                started[found] = run, time.monotonic()
                board.started(run)
            if stop.received and not told:
                told = True
                board.say(f"{stop.received}: waiting for {len(started)} runs to save")
                for task in started:
                    ray.cancel(task, force=False)
            done, _ = ray.wait(list(started), num_returns=len(started), timeout=_POLL_S)
            for task in done:
                run, began = started.pop(task)
                ended.append(_end(ray, task, run, began))
                board.ended(ended[-1], stopped=stop.received is not None)
                if ended[-1].exit_code == 0:
                    on_finished(run)
            board.refresh([run for run, _ in started.values()])
    if stop.received:
        raise Preempted(
            f"stopped by {stop.received}; the same command with --resume goes on with what is left"
        )
    return ended


def run_process(
    command: Sequence[str], log: str, folder: str, environment: Mapping[str, str]
) -> tuple[int, str]:
    """On a node: run a process to its end; its exit code, and the name of the node.

    A task that is cancelled passes it on as SIGTERM, so that the run saves.
    """
    with Path(log).open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        )
        try:
            process.wait()
        except KeyboardInterrupt:  # what ray.cancel raises in a task
            with contextlib.suppress(KeyboardInterrupt):
                process.terminate()
            process.wait()
        return process.returncode, os.uname().nodename


def _end(ray: Any, task: Any, run: Run, began: float) -> Ended:
    try:
        code, _ = ray.get(task)
    except (ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError):
        code = -15
    except ray.exceptions.RayError as error:
        with run.log.open("a", encoding="utf-8") as log:
            log.write(f"\nray: {error}\n")
        code = 1
    found = Ended(run, terminated(code), time.monotonic() - began)
    record_end(found, {"on": "ray"})
    return found


def _carried() -> dict[str, str]:
    """Variables of this process that runs elsewhere need, too."""
    names = ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HOME", "RNTP_CACHE", "HF_HUB_OFFLINE")
    return {name: os.environ[name] for name in names if name in os.environ}


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--on ray needs the package ray; pip install 'rntp[ray]', or leave --on out"
        ) from error
    return ray
