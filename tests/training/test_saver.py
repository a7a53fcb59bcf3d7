"""Saving behind the training's back: what is saved, who waits for whom, and what a failure does."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.errors import CheckpointError
from rntp.run import checkpoint
from rntp.run.log import read_metrics
from rntp.runtime.ranks import SINGLE_RANK
from rntp.trainer import Trainer
from rntp.training.saver import Saver


class Scene:
    """A saver, the disk it writes to (which can be held up or be full), and what it says."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        asynchronous: bool,
        copies_bytes: float | None = None,
    ) -> None:
        self.said: list[tuple[str, str]] = []
        self.done: list[int] = []
        self.free = threading.Event()
        self.full = False
        self._save = checkpoint.save
        monkeypatch.setattr("rntp.training.saver.checkpoint.save", self._slowly)
        self.saver = Saver(
            folder,
            2,
            SINGLE_RANK,
            asynchronous=asynchronous,
            copies_bytes=copies_bytes,
            log=self,
            saved=0,
        )
        self.tensors = {"weights": {"w": torch.zeros(1000)}, "moments": {"step": torch.tensor(0)}}

    def message(self, text: str, level: str = "info") -> None:
        self.said.append((level, text))

    def sync(self) -> None:
        """The record is always on the disk here."""

    def _slowly(self, folder: Path, step: int, *more: Any) -> Path:
        assert self.free.wait(20)
        if self.full:
            raise CheckpointError("no space left")
        path = self._save(folder, step, *more)
        self.done.append(step)
        return path

    def save(self, step: int, **more: bool) -> None:
        """Of weights that are all `step`, and move on at once."""
        self.tensors["weights"]["w"].fill_(step)
        self.saver.save(step, self.tensors, {}, **more)
        self.saver.let_change()
        self.tensors["weights"]["w"].fill_(-1)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path / "checkpoints", monkeypatch, asynchronous=True)


def weight(path: Path) -> set[float]:
    return set(checkpoint.load(path, "weights")["w"].tolist())


def test_training_goes_on_while_the_disk_is_written(scene: Scene, tmp_path: Path) -> None:
    scene.save(1)
    scene.saver.poll()
    assert scene.saver.saved == 0
    assert scene.said == []
    scene.free.set()
    scene.saver.wait()
    assert scene.saver.saved == 1
    path = tmp_path / "checkpoints" / "step_00000001"
    assert checkpoint.problems(path) == []
    assert weight(path) == {1.0}  # as it was then, whatever has become of it
    ((level, text),) = scene.said
    assert level == "info"
    assert text.startswith(f"saved {path} (training stood still for 0.0")


def test_a_save_waits_for_the_one_before(scene: Scene, tmp_path: Path) -> None:
    scene.save(1)
    order: list[list[int]] = []
    second = threading.Thread(target=lambda: (scene.save(2), order.append(list(scene.done))))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    scene.free.set()
    second.join(20)
    assert order[0][0] == 1
    scene.saver.wait()
    assert scene.done == [1, 2]
    assert [weight(p) for _, p in checkpoint.committed(tmp_path / "checkpoints")] == [{1.0}, {2.0}]


def test_without_memory_for_copies_an_update_waits_and_a_rollout_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path / "checkpoints", monkeypatch, asynchronous=True, copies_bytes=100)
    scene.tensors["weights"]["w"].fill_(1)
    scene.saver.save(1, scene.tensors, {})  # returns, although nothing is written
    update = threading.Thread(target=scene.saver.let_change)
    update.start()
    update.join(0.3)
    assert update.is_alive()
    scene.free.set()
    update.join(20)
    assert not update.is_alive()
    scene.tensors["weights"]["w"].fill_(-1)
    scene.saver.wait()
    assert weight(tmp_path / "checkpoints" / "step_00000001") == {1.0}
    assert "training stood still for 0." in scene.said[0][1]


def test_a_save_that_fails_does_not_hold_the_update_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path / "checkpoints", monkeypatch, asynchronous=True, copies_bytes=100)
    scene.full = True
    scene.free.set()
    scene.save(1)  # its tensors are never written, and do not fit
    scene.saver.wait()
    assert (scene.saver.saved, scene.said[0][0]) == (0, "error")


def test_a_failure_is_loud_and_training_goes_on(scene: Scene) -> None:
    scene.free.set()
    scene.full = True
    scene.save(1)
    scene.saver.wait()
    assert scene.saver.saved == 0
    ((level, text),) = scene.said
    assert level == "error"
    assert text.startswith("NOT SAVED: no space left. Training goes on")
    with pytest.raises(CheckpointError, match="no space left"):  # the last one has to be there
        scene.save(2, wait=True)
    scene.full = False
    scene.save(3)
    scene.saver.wait()
    assert (scene.saver.saved, scene.done) == (3, [3])


def test_without_it_the_step_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path / "checkpoints", monkeypatch, asynchronous=False)
    scene.free.set()
    scene.save(1)
    assert (scene.saver.saved, scene.done) == (1, [1])
    scene.full = True
    scene.save(2)
    assert scene.said[-1][0] == "error"
    assert scene.saver.saved == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_three_failures_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    scene = Scene(tmp_path / "checkpoints", monkeypatch, asynchronous)
    scene.free.set()
    for step, full in enumerate((True, True, False, True, True), 1):
        scene.full = full
        scene.save(step)
        scene.saver.wait()
    assert (scene.saver.saved, scene.done) == (3, [3])
    if asynchronous:  # the next save is where all ranks have heard of it
        scene.save(6)
        scene.saver.wait()
    with pytest.raises(CheckpointError, match="no space left"):
        scene.save(7)
    assert [level for level, _ in scene.said].count("error") == (5 if asynchronous else 4)


def test_a_record_that_cannot_be_written_is_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume cuts the record to the checkpoint: one beyond the record would lose some of it."""
    scene = Scene(tmp_path / "checkpoints", monkeypatch, asynchronous=False)
    scene.free.set()

    def full() -> None:
        raise OSError(28, "No space left on device")

    scene.sync = full
    scene.save(1)
    assert scene.done == []
    assert "the record up to step 1 could not be written" in scene.said[-1][1]


def test_a_run_saves_the_same_either_way(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["evaluation"]["docs"] = 0
    raw["checkpoint"] = {"every_steps": 1, "keep": 9}
    folders = [tmp_path / "at-once", tmp_path / "behind", tmp_path / "tight"]
    settings = ("false", "true", "{copies_gib: 0.00001}")
    for folder, asynchronous in zip(folders, settings, strict=True):
        sets = [f"run.dir={folder}", f"checkpoint.asynchronous={asynchronous}"]
        Trainer(Config.parse(raw, sets)).fit()
    first, *others = (checkpoint.committed(folder / "checkpoints") for folder in folders)
    for second in others:
        assert [step for step, _ in first] == [step for step, _ in second] == [1, 2, 3, 4]
        for (_, one), (_, other) in zip(first, second, strict=True):
            for stem in ("weights", "moments"):
                found, wanted = checkpoint.load(one, stem), checkpoint.load(other, stem)
                assert found.keys() == wanted.keys()
                assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert len(read_metrics(folders[1])) == 4
    told = (folders[1] / "log.txt").read_text()
    assert told.count("saved ") == 4
