"""Checkpoints: whole or absent, verified before they are read, never the last one lost."""

import hashlib
import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rntp.errors import CheckpointError, Preempted
from rntp.run import checkpoint
from rntp.run import checkpoint_shards as shards

WEIGHTS = "weights/shard-00001-model-00001-of-00001.safetensors"
MOMENTS = "moments/shard-00001-model-00001-of-00001.safetensors"


def write(folder: Path, step: int, keep: int = 2, value: float = 1.0) -> Path:
    tensors = {"weights": {"w": torch.full((4, 3), value)}, "moments": {"m": torch.arange(2000.0)}}
    return checkpoint.save(folder, step, tensors, {"next_ordinal": step * 3}, keep)


def silent(text: str) -> None:
    raise AssertionError(f"nothing should have been said: {text}")


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert path.name == "step_00000007"
    assert checkpoint.problems(path) == []
    assert checkpoint.newest_valid(tmp_path, silent) == path
    torch.testing.assert_close(checkpoint.load(path, "weights"), {"w": torch.ones(4, 3)})
    assert checkpoint.load_state(path) == {"next_ordinal": 21, "step": 7, "world_size": 1}
    commit = json.loads((path / "COMMIT.json").read_text())
    assert set(commit["files"]) == {WEIGHTS, MOMENTS, "state.json"}
    assert commit["world_size"] == 1
    assert checkpoint.shapes(path, "weights") == {"w": [4, 3]}
    assert checkpoint.num_bytes(path) > (12 + 5) * 4


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
        (lambda p: flip(p / WEIGHTS), f"{WEIGHTS}: its bytes have changed"),
        (lambda p: zero_a_page(p / MOMENTS), f"{MOMENTS}: its bytes have changed"),
        (lambda p: (p / MOMENTS).unlink(), f"{MOMENTS}: missing"),
        (lambda p: os.truncate(p / MOMENTS, 4096), f"{MOMENTS}: 4096 bytes, "),
        (lambda p: (p / "state.json").write_text("{}"), "state.json: 2 bytes"),
        (lambda p: (p / "COMMIT.json").write_text("{"), "COMMIT.json: unreadable"),
        (lambda p: (p / "COMMIT.json").write_text("[]"), "COMMIT.json: unreadable"),
        (lambda p: (p / "COMMIT.json").unlink(), "COMMIT.json: missing"),
        (lambda p: edit_commit(p), "COMMIT.json: it has been edited"),
        (
            lambda p: (p / "weights" / "shard-00002-more.safetensors").write_bytes(b""),
            "weights/shard-00002-more.safetensors: not of this checkpoint",
        ),
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
    flip(older / WEIGHTS)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoint.newest_valid(tmp_path, said.append)


def test_files_are_dealt_out_by_size_each_to_one() -> None:
    sizes = {"a": 5, "b": 4, "c": 3, "d": 3, "e": 3}
    shares = checkpoint.shares_by_size(sizes, 2)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    assert sorted(sum(sizes[n] for n in share) for share in shares) == [8, 10]
    assert checkpoint.shares_by_size({"a": 1}, 3) == [["a"], [], []]


def test_hashing_gives_signs_of_life_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_PIECE", 64)
    path = write(tmp_path, 1)
    beats = []
    assert checkpoint.newest_valid(tmp_path, silent, check=lambda: beats.append(1)) == path
    hashed = checkpoint.num_bytes(path) - checkpoint.num_bytes(path, "COMMIT.json")
    assert len(beats) >= hashed / 64
    assert checkpoint.num_bytes(path) > checkpoint.num_bytes(path, "weights") > 0

    def stop() -> None:
        raise Preempted("asked to")

    with pytest.raises(Preempted):
        checkpoint.newest_valid(tmp_path, silent, check=stop)


def edit_commit(path: Path) -> None:
    """Somebody makes a damaged file fit."""
    (path / "state.json").write_text("{}")
    commit = json.loads((path / "COMMIT.json").read_text())
    commit["files"]["state.json"] = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    (path / "COMMIT.json").write_text(json.dumps(commit))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)


def zero_a_page(path: Path) -> None:
    """Of the disk: 4 KiB of a file whose size stays."""
    with path.open("r+b") as file:
        file.seek(2048)
        assert any(file.read(4096))
        file.seek(2048)
        file.write(bytes(4096))


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    """As DCP's own `.metadata`, or in place of a file that is read, with hashes that fit."""
    older, newer, ran = write(tmp_path / "c", 1), write(tmp_path / "c", 2), tmp_path / "ran"
    pickled = pickle.dumps(Bomb(ran))
    (newer / "weights" / ".metadata").write_bytes(pickled)
    said: list[str] = []
    assert checkpoint.newest_valid(tmp_path / "c", said.append) == older
    assert "weights/.metadata: not of this checkpoint" in said[0]

    (newer / "weights" / ".metadata").unlink()
    (newer / WEIGHTS).write_bytes(pickled)
    commit = json.loads((newer / "COMMIT.json").read_text())
    sha256 = hashlib.sha256(pickled).hexdigest()
    commit["files"][WEIGHTS] = {"bytes": len(pickled), "sha256": sha256}
    commit["sha256"] = checkpoint._digest({k: v for k, v in commit.items() if k != "sha256"})
    (newer / "COMMIT.json").write_text(json.dumps(commit))
    assert checkpoint.problems(newer) == []
    with pytest.raises(CheckpointError, match="are not those of this run's model"):
        checkpoint.load_into(newer, "weights", {"w": torch.zeros(4, 3)})
    with pytest.raises(OSError, match=r"(?i)header"):
        checkpoint.load(newer, "weights")
    assert not ran.exists()
    pickle.loads(pickled)
    assert ran.exists()  # it would have been seen


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


def test_pruning_never_takes_the_last_good_one(tmp_path: Path) -> None:
    good, newer, newest = (write(tmp_path, n, keep=9) for n in (1, 2, 3))
    for path in (newer, newest):
        flip(path / WEIGHTS)  # which only hashes can tell
    assert checkpoint.prune(tmp_path, 1, checkpoint.problems) == [newer, newest]
    assert checkpoint.problems(good) == []
    write(tmp_path, 2, keep=9)
    assert checkpoint.prune(tmp_path, 1, checkpoint.glance) == [good]
    flip(newer / WEIGHTS)
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


def test_damaged_ones_do_not_count_for_what_is_kept(tmp_path: Path) -> None:
    """With keep=1 the run goes back behind a damaged checkpoint; what it then saves must stay."""
    good, damaged = write(tmp_path, 4, keep=2), write(tmp_path, 10, keep=2)
    (damaged / MOMENTS).unlink()
    newer = write(tmp_path, 6, keep=1)
    assert [path for _, path in checkpoint.committed(tmp_path)] == [newer]
    assert checkpoint.newest_valid(tmp_path, silent) == newer
    # One of two that are to be kept has lost a file: the sound one before it stays in its place.
    second = write(tmp_path, 7, keep=2)
    (second / WEIGHTS).write_bytes(b"")
    third = write(tmp_path, 8, keep=2)
    assert [path for _, path in checkpoint.committed(tmp_path)] == [newer, third]
    assert not good.exists()


def test_a_kill_between_two_names_loses_neither(tmp_path: Path) -> None:
    """The step is saved again, and the kill comes when the old one has lost its name."""
    path = write(tmp_path, 3)
    path.replace(path.with_name(f".old-{path.name}"))
    assert checkpoint.committed(tmp_path) == []
    checkpoint.clear_leftovers(tmp_path)
    assert checkpoint.newest_valid(tmp_path, silent) == path
    again = write(tmp_path, 3, value=2.0)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000003"]
    assert float(checkpoint.load(again, "weights")["w"][0, 0]) == 2.0


def test_the_format_before_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "step_00000005"
    path.mkdir()
    saved = {"weights": {"w": torch.arange(6.0).view(2, 3)}, "moments": {"step.w": torch.ones(())}}
    for stem, tensors in saved.items():
        save_file(tensors, path / f"{stem}.safetensors")
    (path / "state.json").write_text('{"step": 5}')
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in path.iterdir()
    }
    (path / "COMMIT.json").write_text(json.dumps({"step": 5, "files": files}))
    assert checkpoint.newest_valid(tmp_path, silent) == path
    assert checkpoint.shapes(path, "weights") == {"w": [2, 3]}
    found = {"w": torch.zeros(2, 3)}
    checkpoint.load_into(path, "weights", found)
    assert torch.equal(found["w"], saved["weights"]["w"])
    assert float(checkpoint.load(path, "moments")["step.w"]) == 1


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    for wanted in ({"v": torch.zeros(4, 3)}, {"w": torch.zeros(3, 3)}):
        with pytest.raises(CheckpointError, match="are not those of this run's model"):
            checkpoint.load_into(path, "weights", wanted)


def test_every_type_and_shape_is_read_back_and_by_others(tmp_path: Path) -> None:
    """No element, no dimension, parts of others; also by the library whose format it is."""
    tensors = {
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(2.5),
        "columns": torch.arange(12.0).view(3, 4).T,
        "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "long": torch.tensor([2**60]),
        "half": torch.full((3,), 1.5, dtype=torch.bfloat16),
        "double": torch.full((2, 2), 0.1, dtype=torch.float64),
    }
    path = checkpoint.save(tmp_path / "a", 1, {"weights": tensors}, {}, 1)
    for found in (checkpoint.load(path, "weights"), load_file(path / WEIGHTS)):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    again = checkpoint.save(tmp_path / "b", 1, {"weights": tensors}, {}, 1)
    assert (again / WEIGHTS).read_bytes() == (path / WEIGHTS).read_bytes()


def test_many_small_files_where_one_would_be_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "FILE_BYTES", 100)
    tensors = {f"t{n}": torch.full((10,), float(n)) for n in range(5)}
    path = checkpoint.save(tmp_path, 1, {"weights": tensors}, {}, 1)
    assert len(list((path / "weights").iterdir())) == 3
    torch.testing.assert_close(checkpoint.load(path, "weights"), tensors)
