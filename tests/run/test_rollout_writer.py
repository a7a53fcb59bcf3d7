"""Thoughts on the disk: written behind the training, by each rank its own, and read as one."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rntp.errors import ConfigError
from rntp.run.rollout_files import forget_after, read_rollouts, rollout_files, rollout_path
from rntp.run.rollout_writer import RolloutWriter


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "rollouts").iterdir())


def test_ranks_write_their_own_and_readers_see_one_step(tmp_path: Path) -> None:
    """Twelve ranks, so that rank 10 comes after rank 2."""
    writers = [RolloutWriter(tmp_path, rank=rank, size=12) for rank in range(12)]
    for rank in reversed(range(12)):
        writers[rank].add(3, [{"ordinal": rank}, {"ordinal": rank + 0.5}])
    for writer in writers:
        writer.close()
    rows = read_rollouts(tmp_path, 3)
    assert [row["ordinal"] for row in rows] == [n / 2 for n in range(24)]
    assert names(tmp_path)[0] == "step_00000003.rank_0.jsonl"
    # The same run goes on on one rank.
    alone = RolloutWriter(tmp_path)
    alone.add(4, [{"ordinal": 24}])
    alone.close()
    assert {step: len(files) for step, files in rollout_files(tmp_path).items()} == {3: 12, 4: 1}
    forget_after(tmp_path, 3)
    assert list(rollout_files(tmp_path)) == [3]
    assert read_rollouts(tmp_path, 4) == []
    (tmp_path / "rollouts" / ".step_00000002.jsonl.7.tmp").write_text("{")  # a kill left it
    forget_after(tmp_path, 2)
    assert names(tmp_path) == []


def test_rows_are_made_and_written_in_another_thread_in_order(tmp_path: Path) -> None:
    made: list[tuple[int, str]] = []
    begin = threading.Event()

    def rows(step: int) -> Iterator[dict]:
        begin.wait(10)
        made.append((step, threading.current_thread().name))
        yield {"step": step}

    writer = RolloutWriter(tmp_path)
    for step in (1, 2, 3):
        writer.add(step, rows(step))
    assert names(tmp_path) == []  # nobody has waited for them
    begin.set()
    writer.sync()
    assert made == [(n, "rollouts") for n in (1, 2, 3)]
    assert [read_rollouts(tmp_path, n) for n in (1, 2, 3)] == [[{"step": n}] for n in (1, 2, 3)]
    writer.close()


def test_training_waits_for_a_writer_that_is_too_slow(tmp_path: Path) -> None:
    def slow() -> Iterator[dict]:
        time.sleep(0.05)
        yield {}

    writer = RolloutWriter(tmp_path)
    start = time.monotonic()
    for step in range(1, 11):
        writer.add(step, slow())
    assert time.monotonic() - start >= 0.2  # at most a few steps wait in memory
    writer.close()
    assert len(names(tmp_path)) == 10


def test_old_steps_are_packed_and_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rntp.run.rollout_writer.PLAIN_STEPS", 4)
    monkeypatch.setattr("rntp.run.rollout_writer.PACK_EVERY", 2)

    def write(folder: Path, first: int, last: int) -> None:
        writer = RolloutWriter(folder)
        for step in range(first, last + 1):
            writer.add(step, [{"step": step, "thought": "word " * 50}])
        writer.close()

    write(tmp_path / "whole", 1, 9)
    packed = [f"step_{n:08d}.jsonl.gz" for n in (1, 2, 3)]
    assert names(tmp_path / "whole") == packed + [f"step_{n:08d}.jsonl" for n in range(4, 10)]
    for step in range(1, 10):
        assert read_rollouts(tmp_path / "whole", step) == [{"step": step, "thought": "word " * 50}]
    # A run that was stopped and goes on from an earlier step leaves the same files.
    write(tmp_path / "parts", 1, 7)
    forget_after(tmp_path / "parts", 6)
    write(tmp_path / "parts", 7, 9)
    for one in (tmp_path / "whole" / "rollouts").iterdir():
        assert one.read_bytes() == (tmp_path / "parts" / "rollouts" / one.name).read_bytes()
    assert names(tmp_path / "whole") == names(tmp_path / "parts")
    # A kill between the copy and the removal: one of them counts.
    plain = rollout_path(tmp_path / "whole", 1)
    plain.write_bytes(gzip.decompress(plain.with_name(f"{plain.name}.gz").read_bytes()))
    assert len(read_rollouts(tmp_path / "whole", 1)) == 1
    # And a file that is cut is named.
    cut = tmp_path / "whole" / "rollouts" / packed[1]
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"step_00000002\.jsonl\.gz cannot be unpacked"):
        read_rollouts(tmp_path / "whole", 2)


def test_not_all_thoughts_wait_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, data: bytes) -> None:
        raise OSError(30, "read-only")

    monkeypatch.setattr("rntp.run.rollout_writer._MOST_WAITING", 100)
    writer = RolloutWriter(tmp_path)
    with monkeypatch.context() as full:
        full.setattr("rntp.run.rollout_writer.write_bytes_atomic", refused)
        for step in (1, 2):
            writer.add(step, [{"a": "x" * 60}])
            with pytest.raises(OSError, match="read-only"):
                writer.sync()
        assert isinstance(writer.refusal(), OSError)
        assert writer.refusal() is None
        with pytest.raises(OSError, match="read-only"):
            writer.add(3, [{"a": 1}])
    writer.sync()
    assert [len(read_rollouts(tmp_path, n)) for n in (1, 2, 3)] == [1, 1, 0]
    assert writer.waiting_bytes == 0
    writer.close()


def test_what_goes_wrong_in_the_thread_is_raised_where_one_trains(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path)
    writer.add(1, ({"a": 1 / n} for n in (1, 0)))
    with pytest.raises(ZeroDivisionError):
        writer.sync()
    with pytest.raises(ZeroDivisionError):
        writer.add(2, [])


def test_what_is_forgotten_is_not_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, data: bytes) -> None:
        raise OSError(28, "full")

    writer = RolloutWriter(tmp_path)
    with monkeypatch.context() as full:
        full.setattr("rntp.run.rollout_writer.write_bytes_atomic", refused)
        writer.add(5, [{"a": 1}])
        writer.forget()
    writer.add(2, [{"a": 2}])
    writer.close()
    assert list(rollout_files(tmp_path)) == [2]
    assert json.loads(rollout_path(tmp_path, 2).read_text()) == {"a": 2}
