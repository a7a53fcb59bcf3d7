"""Samplers that a run starts itself, on its machine: they end with it, and are started again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rntp.data.storage import Location

TRIES = 3  # starts of one sampler that end within QUICK_S, in a row; then it is given up
QUICK_S = 60.0


class LocalSamplers:
    """Processes `rntp sample STORE`. folder: where what they say is kept."""

    def __init__(
        self, store: Location, count: int, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._store, self._folder, self._say = store, folder, say
        self._running: dict[str, subprocess.Popen] = {}
        self._started_s: dict[str, float] = {}
        self._quick: dict[str, int] = {}
        self._names = [f"local-{n}" for n in range(1, count + 1)]

    def watch(self) -> None:
        """Start those that do not run. Cheap: call it often."""
        for name in self._names:
            process = self._running.get(name)
            if process is not None and process.poll() is None:
                continue
            if process is not None and not self._may_start_again(name, process.returncode):
                continue
            self._start(name)

    def close(self) -> None:
        """End all of them."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        for process in self._running.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _may_start_again(self, name: str, code: int) -> bool:
        if self._quick.get(name, 0) >= TRIES:
            return False
        quick = time.monotonic() - self._started_s[name] < QUICK_S
        self._quick[name] = self._quick.get(name, 0) + 1 if quick else 0
        log = self._folder / f"{name}.txt"
        if self._quick[name] >= TRIES:
            self._say(f"sampler {name} ended with {code} {TRIES} times in a row, see {log}")
            return False
        self._say(f"sampler {name} ended with {code} and is started again, see {log}")
        return True

    def _start(self, name: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "rntp", "sample", str(self._store), "--name", name]
        command += ["--while-parent", str(os.getpid())]
        with (self._folder / f"{name}.txt").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._started_s[name] = time.monotonic()
