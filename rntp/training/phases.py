"""The phases of a step: timed, shown, and watched, one `with` each."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rntp.run.log import NoLog, RunLog
from rntp.runtime.crowding import Crowding
from rntp.runtime.memory import peak_bytes, reset_peak_bytes
from rntp.runtime.watchdog import Watchdog

# Phases that have a time of their own in the metrics; the rest of a step is in time/step_s alone.
TIMED = {
    "rollout": "time/rollout_s",
    "score": "time/forward_s",
    "forward": "time/forward_s",
    "another epoch": "time/forward_s",
    "backward": "time/backward_s",
    "update": "time/update_s",
}


class Stopwatch:
    """Seconds by name; a name may be lapped more than once.

    A GPU works behind the program: a lap ends once the device has done what it was given.
    """

    def __init__(self, device: torch.device) -> None:
        self.laps: dict[str, float] = {}
        self._device = device
        self._start = self._now()

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the seconds in which this is open."""
        start = self._now()
        yield
        self.laps[name] = self.laps.get(name, 0.0) + self._now() - start

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Phases:
    """Opens phases: `with phases("forward", i, n)` tells watchdog and console, and takes the time.

    check: raises if the run is asked to stop; see `rntp.runtime.signals.StopRequest.check`.
    """

    def __init__(
        self,
        device: torch.device,
        watchdog: Watchdog,
        log: RunLog | NoLog,
        check: Callable[[], None],
    ) -> None:
        self._device, self._watchdog, self._log, self._check = device, watchdog, log, check
        self._clock = Stopwatch(device)
        self._crowding = Crowding()

    def begin_step(self) -> None:
        """Start the clock and the count of peak memory anew."""
        reset_peak_bytes()
        self._clock = Stopwatch(self._device)
        self._crowding = Crowding()

    def metrics(self) -> dict[str, float]:
        """Seconds of the step so far, by part and in all, and its peak of memory."""
        share = self._crowding.share
        return {
            **self._clock.laps,
            "time/step_s": self._clock.total,
            "memory/peak_gb": peak_bytes() / 1e9,
            **({} if share is None else {"time/cpu_share": share}),
        }

    @contextmanager
    def __call__(self, name: str, done: int = 0, total: int = 1) -> Iterator[None]:
        self.tell(name, done, total)
        if name not in TIMED:
            yield
            return
        with self._clock.lap(TIMED[name]):
            yield

    def tell(self, name: str, done: int = 0, total: int = 1) -> None:
        """Say that a phase begins, or how far it is."""
        self._watchdog.heartbeat(name)
        self._log.phase(name, done, total)

    def reads(self, step: int, ordinal: int) -> None:
        """Say which contexts a step has."""
        self._watchdog.heartbeat(step=step, ordinal=ordinal)

    def poll(self) -> None:
        """Give a sign of life, and end where the run is asked to: whatever lasts calls it often.

        Only inside of what ranks agree on. Raises Preempted.
        """
        self._watchdog.heartbeat()
        self._check()
