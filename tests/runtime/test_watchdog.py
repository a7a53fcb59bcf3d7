"""The watchdog: what it writes, and that it never costs a healthy run anything."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from rntp.runtime.watchdog import Watchdog


def heartbeat(folder: Path, phase: str) -> dict:
    """The file, once it tells of that phase."""
    path = folder / "heartbeat" / "rank_3.json"
    for _ in range(200):
        if path.exists() and (facts := json.loads(path.read_text()))["phase"] == phase:
            return facts
        time.sleep(0.05)
    raise AssertionError(f"no heartbeat of phase {phase} in 10 s")


def test_it_writes_what_goes_on_and_leaves_no_stacks(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 60, rank=3) as watchdog:
        watchdog.heartbeat("rollout", step=7, ordinal=21)
        facts = heartbeat(tmp_path, "rollout")
        assert facts.pop("time") > 1.7e9
        assert facts == {
            "rank": 3,
            "phase": "rollout",
            "step": 7,
            "ordinal": 21,
            "waits": False,
            "pid": os.getpid(),
        }
        watchdog.heartbeat("save")
        assert heartbeat(tmp_path, "save")["step"] == 7
        process = watchdog._process
    assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat"]


@pytest.mark.slow
def test_life_keeps_it_calm_beyond_the_timeout(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 4) as watchdog:
        for _ in range(60):
            watchdog.heartbeat()
            time.sleep(0.1)
    assert not (tmp_path / "stacks").exists()


def test_ranks_leave_in_any_order(tmp_path: Path) -> None:
    """The folder of the stacks may be gone, or hold another's, when one leaves."""
    with Watchdog(tmp_path, 60, rank=1):
        with Watchdog(tmp_path, 60, rank=2):
            pass
        assert (tmp_path / "stacks").exists()
        (tmp_path / "stacks" / "rank_1.txt").rename(tmp_path / "kept")
        (tmp_path / "stacks").rmdir()
        (tmp_path / "stacks").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "kept").rename(tmp_path / "elsewhere" / "rank_1.txt")
    assert (tmp_path / "stacks").is_symlink()  # rmdir fails here, and nobody minds


@pytest.mark.slow
def test_silence_is_told_before_it_is_ended(tmp_path: Path, capfd) -> None:
    """After half of the time (45 s at most): stacks and a line, once a phase; life goes on."""
    with Watchdog(tmp_path, 4, rank=1) as watchdog:
        watchdog.heartbeat("rollout", step=7, ordinal=21)
        time.sleep(3)
        watchdog.heartbeat("forward")
    told = "rank 1 may hang in phase rollout of step 7 (ordinal 21): no sign of life for 2 s"
    stacks = (tmp_path / "stacks" / "rank_1.txt").read_text()
    assert stacks.count(told) == 1
    assert "test_silence_is_told_before_it_is_ended" in stacks
    assert capfd.readouterr().err.count(told) == 1


@pytest.mark.slow
def test_who_waits_for_others_is_not_silent(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 2, rank=3) as watchdog:
        watchdog.heartbeat("rollout")
        with watchdog.waiting("rollout"):
            time.sleep(3)
            assert heartbeat(tmp_path, "rollout")["waits"]
    assert not (tmp_path / "stacks").exists()


def test_nobody_watches_with_a_timeout_of_0(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0) as watchdog:
        watchdog.heartbeat("rollout")
    assert list(tmp_path.iterdir()) == []


def test_the_run_outlives_its_watchdog(tmp_path: Path, capfd) -> None:
    with Watchdog(tmp_path, 60) as watchdog:
        os.kill(watchdog._process.pid, signal.SIGKILL)
        watchdog._process.wait()
        watchdog.heartbeat("rollout")
        watchdog.heartbeat("forward")
    assert capfd.readouterr().err.count("the watchdog is gone") == 1


def test_a_beat_is_cheap(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 1800) as watchdog:
        start = time.process_time()
        for _ in range(10_000):
            watchdog.heartbeat()
        assert time.process_time() - start < 0.5  # 50 µs each; one comes with every token
