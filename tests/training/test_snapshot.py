"""What a save copies, and what an update waits for."""

import threading
import time
from pathlib import Path

import pytest
import torch

from rntp.run import checkpoint, checkpoint_shards
from rntp.training.snapshot import Snapshot

BYTES = 4 * 250  # of one tensor


def tensors(number: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    return {"weights": {f"w{n}": torch.full((250,), float(n)) for n in range(number)}}


def change(group: dict[str, torch.Tensor]) -> None:
    for tensor in group.values():
        tensor.fill_(-1)


def test_what_is_written_in_time_is_never_copied() -> None:
    found = tensors()
    snapshot = Snapshot(found)
    for name in found["weights"]:
        with snapshot.reading("weights", [name]) as others:
            assert others == {}
    snapshot.let_change()
    assert snapshot.copied_bytes == 0


def test_what_is_left_is_copied_and_the_rest_may_change() -> None:
    found = tensors()
    snapshot = Snapshot(found)
    with snapshot.reading("weights", ["w0"]):
        pass
    snapshot.let_change()
    assert snapshot.copied_bytes == 3 * BYTES
    change(found["weights"])
    with snapshot.reading("weights", ["w1", "w3"]) as others:
        assert {name: set(t.tolist()) for name, t in others.items()} == {"w1": {1.0}, "w3": {3.0}}
    with snapshot.reading("weights", ["w1"]) as others:
        assert others == {}  # nothing holds on to what is on the disk


def test_copies_stay_within_their_memory_and_the_update_waits_for_the_rest() -> None:
    found = tensors(8)
    snapshot = Snapshot(found, copies_bytes=3 * BYTES)
    update = threading.Thread(target=snapshot.let_change)
    update.start()
    written = {}
    for name in found["weights"]:
        time.sleep(0.02)
        alive = update.is_alive()
        with snapshot.reading("weights", [name]) as others:
            # The last three are copies; before them the update waits.
            assert set(others) <= {"w5", "w6", "w7"}
            assert alive or name in ("w5", "w6", "w7")
            written[name] = others.get(name, found["weights"][name]).clone()
    update.join(20)
    assert not update.is_alive()
    assert snapshot.copied_bytes == 3 * BYTES
    assert [set(t.tolist()) for t in written.values()] == [{float(n)} for n in range(8)]


def test_what_is_being_written_is_waited_for() -> None:
    found = tensors(1)
    snapshot = Snapshot(found)
    update = threading.Thread(target=snapshot.let_change)
    with snapshot.reading("weights", ["w0"]):
        update.start()
        update.join(0.2)
        assert update.is_alive()
    update.join(20)
    assert not update.is_alive()
    assert snapshot.copied_bytes == 0


@pytest.mark.parametrize("how", ["close", "keep"])
def test_what_nobody_writes_holds_nothing_up(how: str) -> None:
    found = tensors()
    snapshot = Snapshot(found, copies_bytes=1)
    update = threading.Thread(target=snapshot.let_change)
    update.start()
    update.join(0.1)
    assert update.is_alive()
    if how == "close":
        snapshot.close()
    else:  # another rank writes all
        snapshot.keep("weights", [])
    update.join(20)
    assert not update.is_alive()


def test_a_checkpoint_has_the_numbers_of_the_moment_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of two tensors; the update comes while the second is due."""
    monkeypatch.setattr(checkpoint_shards, "FILE_BYTES", 2 * BYTES)
    found = tensors(6)
    snapshot = Snapshot(found, copies_bytes=3 * BYTES)
    write, files = checkpoint_shards._write_file, []

    def slowly(path: Path, parts: list) -> None:
        if len(files) == 1:
            update = threading.Thread(
                target=lambda: (snapshot.let_change(), change(found["weights"]))
            )
            update.start()
            time.sleep(0.1)
            assert update.is_alive()  # two are being written, and one of four is too many
        files.append(path)
        write(path, parts)

    monkeypatch.setattr(checkpoint_shards, "_write_file", slowly)
    path = checkpoint.save(tmp_path, 1, found, {}, 1, source=snapshot.of)
    snapshot.close()
    loaded = checkpoint.load(path, "weights")
    assert [set(loaded[f"w{n}"].tolist()) for n in range(6)] == [{float(n)} for n in range(6)]
    assert len(files) == 3
    assert 0 < snapshot.copied_bytes <= 3 * BYTES
