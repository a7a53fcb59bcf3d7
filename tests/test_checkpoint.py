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


def test_without_a_commit_it_does_not_exist(tmp_path: Path) -> None:
    assert checkpoint.newest_valid(tmp_path / "absent", silent) is None
    path = write(tmp_path, 1)
    (path / "COMMIT.json").unlink()
    assert checkpoint.newest_valid(tmp_path, silent) is None


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
