"""Stages one after the other in a process of their own, so that none takes the others with it."""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

Figures = dict[str, Any]
Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """name. work: "module:function", imported where it runs, from a setting to figures that JSON
    can hold; raises where something is wrong. budget_s: seconds after which it is given up.
    proves: it decides the exit code."""

    name: str
    work: str
    budget_s: float
    proves: bool


def run_stages(
    stages: Sequence[Stage],
    setting: object,
    *,
    total_s: float,
    keep: Callable[[Results], None],
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Run what fits into `total_s` seconds; `keep` is called with all results so far after each.

    A stage that raises, hangs beyond its budget or ends its process is recorded, and the next one
    runs in a new process: after an illegal access of memory a process can use its GPU no more.
    """
    begun = time.monotonic()
    results: Results = []
    worker: _Worker | None = None
    try:
        for number, stage in enumerate(stages):
            left = total_s - (time.monotonic() - begun)
            started = time.monotonic()
            if left <= 0:
                found: dict[str, Any] = {"status": "skipped", "why": "the time of all is over"}
            else:
                worker = worker or _Worker(stages, setting)
                found = worker.run(number, min(stage.budget_s, left))
                if found["status"] != "ok":
                    worker = worker.end()
            seconds = time.monotonic() - started
            results.append(
                {"stage": stage.name, "proves": stage.proves, "seconds": seconds, **found}
            )
            keep(results)
            say(f"{stage.name}: {found['status']}, {seconds:.0f} s{_last_line(found)}")
    finally:
        if worker is not None:
            worker.end()
    return results


def passed(results: Results) -> bool:
    """Whether everything that proves something has run and was right."""
    return all(result["status"] == "ok" for result in results if result["proves"])


class _Worker:
    """The process that runs stages as it is told their numbers."""

    def __init__(self, stages: Sequence[Stage], setting: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_work, args=(other, list(stages), setting)
        )
        self._process.start()
        other.close()

    def run(self, number: int, budget_s: float) -> dict[str, Any]:
        self._connection.send(number)
        try:
            if self._connection.poll(budget_s):
                found: dict[str, Any] = self._connection.recv()
                return found
        except (EOFError, ConnectionError):
            self._process.join(timeout=10)
            return {"status": "failed", "why": f"its process ended: {self._process.exitcode}"}
        return {"status": "failed", "why": f"over its budget of {budget_s:.0f} s"}

    def end(self) -> None:
        self._connection.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection, stages: Sequence[Stage], setting: object) -> None:
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        try:
            module, _, function = stages[number].work.partition(":")
            work: Callable[[Any], Figures] = getattr(import_module(module), function)
            connection.send({"status": "ok", "figures": work(setting)})
        except Exception:
            connection.send({"status": "failed", "why": traceback.format_exc()})


def _last_line(found: dict[str, Any]) -> str:
    return ": " + found["why"].strip().splitlines()[-1] if "why" in found else ""
