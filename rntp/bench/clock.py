"""Interleaved timing: providers take turns, so that a busy minute of the machine hits them all."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from rntp.runtime.memory import peak_bytes, reset_peak_bytes

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """Seconds of one provider, in the order they were taken; warm-up rounds are not among them."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest − fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Elapsed:
    """What a provider returns that times itself: seconds of the part that is compared."""

    seconds: float


def interleaved(
    providers: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warm_up: int = 1,
    say: Progress = lambda text: None,
    failed: dict[str, str] | None = None,
    peaks: dict[str, int] | None = None,
    needed: Collection[str] = (),
) -> dict[str, Timing]:
    """Run every provider `warm_up + repeats` times, in rounds; each round starts with another one.

    say: called with a line after each round, which names the time that is left. failed: takes the
    reason of each that raises an error, which is then left out, in place of ending all; but for
    those that are needed. peaks: takes the most bytes of memory of each.
    Raises ValueError for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    names = list(providers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for round_ in range(warm_up + repeats):
        for i in range(len(names)):
            name = names[(round_ + i) % len(names)]
            if failed is not None and name in failed:
                continue
            reset_peak_bytes()
            try:
                elapsed = _seconds(providers[name])
            except Exception as error:
                if failed is None or name in needed:
                    raise
                failed[name] = reason_of(error)
                say(f"{name} failed and is left out: {failed[name]}")
                continue
            if peaks is not None:
                peaks[name] = max(peaks.get(name, 0), peak_bytes())
            if round_ >= warm_up:
                seconds[name].append(elapsed)
        done = round_ + 1
        left = (time.perf_counter() - begun) / done * (warm_up + repeats - done)
        say(f"round {done}/{warm_up + repeats}, {left:.0f} s left")
    return {
        name: Timing(tuple(values))
        for name, values in seconds.items()
        if name not in (failed or ())
    }


def reason_of(error: BaseException) -> str:
    """Say in a line why something failed."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else 'without a message'}"[:300]


def load_average() -> float | None:
    """Return the load of the last minute, or None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    """FLOP/s of a square matrix product, best of five: the ceiling that shares are taken of."""
    size = size if device.type == "cpu" else 8 * size
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best = min(_seconds(lambda: a @ b) for _ in range(5))
    return float(2 * size**3 / best)


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    found = work()
    _wait()
    return found.seconds if isinstance(found, Elapsed) else time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
