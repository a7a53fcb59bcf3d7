"""Checkpoints: whole or absent, verified before they are read, never the last one lost."""

import json
import resource
from pathlib import Path

import pytest
import torch

from rntp import checkpoint
from rntp.errors import CheckpointError


def write(folder: Path, step: int, keep: int = 2, value: float = 1.0) -> Path:
    tensors = {"weights": {"w": torch.full((4, 3), value)}, "moments": {"m": torch.arange(5.0)}}
    return checkpoint.save(folder, step, tensors, {"next_ordinal": step * 3}, keep)


def silent(text: str) -> None:
    raise AssertionError(f"nothing should have been said: {text}")


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert path.name == "step_00000007"
    assert checkpoint.problems(path) == []
    assert checkpoint.newest_valid(tmp_path, silent) == path
    torch.testing.assert_close(checkpoint.load(path, "weights"), {"w": torch.ones(4, 3)})
    assert checkpoint.load_state(path) == {"next_ordinal": 21, "step": 7}
    commit = json.loads((path / "COMMIT.json").read_text())
    assert set(commit["files"]) == {"weights.safetensors", "moments.safetensors", "state.json"}


def test_the_oldest_go_first(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=2)
    assert [step for step, _ in checkpoint.committed(tmp_path)] == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 1, value=2.0)
    assert float(checkpoint.load(path, "weights")["w"][0, 0]) == 2.0
    assert checkpoint.problems(path) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda p: flip(p / "weights.safetensors"), "weights.safetensors: its bytes have changed"),
        (lambda p: (p / "moments.safetensors").unlink(), "moments.safetensors: missing"),
        (lambda p: (p / "state.json").write_text("{}"), "state.json: 2 bytes"),
        (lambda p: (p / "COMMIT.json").write_text("{"), "COMMIT.json: unreadable"),
        (lambda p: (p / "COMMIT.json").write_text("[]"), "COMMIT.json: unreadable"),
        (lambda p: (p / "COMMIT.json").unlink(), "COMMIT.json: missing"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, damage, told: str) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    damage(newer)
    said: list[str] = []
    assert checkpoint.newest_valid(tmp_path, said.append) == older
    assert len(said) == 1
    assert "step_00000002" in said[0]
    assert told in said[0]
    flip(older / "weights.safetensors")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoint.newest_valid(tmp_path, said.append)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)


def test_without_a_commit_it_is_damaged(tmp_path: Path) -> None:
    """Nothing writes a name before the COMMIT.json, so one that lacks it has lost it."""
    assert checkpoint.newest_valid(tmp_path / "absent", silent) is None
    assert checkpoint.newest_valid(tmp_path, silent) is None
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    (newer / "COMMIT.json").unlink()
    assert checkpoint.committed(tmp_path) == [(1, older)]
    said: list[str] = []
    assert checkpoint.newest_valid(tmp_path, said.append) == older
    assert said == ["checkpoint step_00000002 is damaged and passed over: COMMIT.json: missing"]
    (older / "COMMIT.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoint.newest_valid(tmp_path, said.append)


def test_an_edited_commit_and_a_foreign_file_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "extra.bin").write_bytes(b"x")
    assert checkpoint.problems(path) == ["extra.bin: not among the committed files"]
    (path / "extra.bin").unlink()
    commit = json.loads((path / "COMMIT.json").read_text())
    (path / "moments.safetensors").unlink()
    del commit["files"]["moments.safetensors"]
    (path / "COMMIT.json").write_text(json.dumps(commit))
    assert checkpoint.problems(path) == ["COMMIT.json: edited since the commit"]
    del commit["seal"]  # as older versions wrote it
    (path / "COMMIT.json").write_text(json.dumps(commit))
    assert checkpoint.problems(path) == []


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    good, cut = write(tmp_path, 1), write(tmp_path, 2)
    (cut / "weights.safetensors").write_bytes(b"")
    newest = write(tmp_path, 3, keep=2)
    assert [path for _, path in checkpoint.committed(tmp_path)] == [good, cut, newest]
    write(tmp_path, 4, keep=2)
    assert [step for step, _ in checkpoint.committed(tmp_path)] == [3, 4]


def test_pruning_never_takes_the_last_good_one(tmp_path: Path) -> None:
    good, newer, newest = (write(tmp_path, n, keep=9) for n in (1, 2, 3))
    flip(newer / "weights.safetensors")  # which only hashes can tell
    flip(newest / "weights.safetensors")
    assert checkpoint.prune(tmp_path, 1, checkpoint.problems) == []
    assert checkpoint.prune(tmp_path, 1, checkpoint.glance) == [good, newer]
    write(tmp_path, 1, keep=9)
    flip(tmp_path / "step_00000001" / "weights.safetensors")
    assert checkpoint.prune(tmp_path, 1, checkpoint.problems) == []  # none is good: none goes


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path) -> None:
    """What was being written or removed goes; what was moved away for nothing comes back."""
    kept, moved = write(tmp_path, 1), write(tmp_path, 2)
    moved.replace(tmp_path / ".old-step_00000002")
    for name in (".tmp-step_00000003", ".del-step_00000000", ".old-step_00000001"):
        (tmp_path / name).mkdir()
    checkpoint.clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == [kept, moved]
    assert checkpoint.problems(moved) == []
    checkpoint.clear_leftovers(tmp_path / "absent")


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A real write error, by the kernel's limit on file sizes; the older checkpoint stays."""
    kept = write(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="step 2 could not be written"):
            checkpoint.save(tmp_path, 2, {"weights": {"w": torch.ones(100_000)}}, {}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoint.problems(kept) == []
