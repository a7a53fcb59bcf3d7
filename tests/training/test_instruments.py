"""What a step measures of itself: laps that wait for the device, and the peak of one step."""

import mmap

import pytest
import torch

from rntp.runtime import memory
from rntp.training.phases import Stopwatch


def test_laps_wait_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of a GPU that has been asked for counts in the lap that asked for it."""
    now, queued = 0.0, 0.0

    def wait(device: torch.device) -> None:
        nonlocal now, queued
        now, queued = now + queued, 0.0

    monkeypatch.setattr("rntp.training.phases.time.perf_counter", lambda: now)
    monkeypatch.setattr("rntp.training.phases.torch.cuda.synchronize", wait)
    clock = Stopwatch(torch.device("cuda"))
    with clock.lap("time/forward_s"):
        queued = 3.0
    with clock.lap("time/update_s"):
        queued = 2.0
    assert clock.laps == {"time/forward_s": 3.0, "time/update_s": 2.0}
    queued = 1.0
    assert clock.total == 6.0


def test_on_the_cpu_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(device: torch.device) -> None:
        raise AssertionError("there is no device to wait for")

    monkeypatch.setattr("rntp.training.phases.torch.cuda.synchronize", never)
    clock = Stopwatch(torch.device("cpu"))
    with clock.lap("x"):
        pass
    assert 0 <= clock.laps["x"] <= clock.total


def test_the_peak_is_of_what_came_after_the_reset() -> None:
    size = 300 << 20

    def take() -> None:
        with mmap.mmap(-1, size) as block:
            for place in range(0, size, mmap.PAGESIZE):
                block[place] = 1

    memory.reset_peak_bytes()
    before = memory.peak_bytes()
    take()
    high = memory.peak_bytes()
    assert high - before > 0.9 * size
    memory.reset_peak_bytes()
    assert memory.peak_bytes() < high - 0.8 * size


def test_a_gpus_peak_is_reset_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = 7
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: peak)

    def reset() -> None:
        nonlocal peak
        peak = 3

    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", reset)
    assert memory.peak_bytes() == 7
    memory.reset_peak_bytes()
    assert memory.peak_bytes() == 3
