"""A run whose thoughts samplers bring: the same run as without them, to the bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import same_shards, tiny_run

from rntp.config import Config
from rntp.rollout.store import engine as store_engine
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.sampler import Sampler
from rntp.run.log import read_metrics
from rntp.trainer import Trainer


def comparable(run_dir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/", "rollout/"))}
        for row in read_metrics(run_dir)
    ]


def fit(raw: dict, folder: Path, *overrides: str) -> Path:
    Trainer(Config.parse(raw, [*overrides, f"run.dir={folder}"])).fit()
    return folder


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["hang_timeout_s"] = 0
    raw["evaluation"] = {"enabled": False}
    return raw


Between = Callable[[Callable[[], None]], None]


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> Between:
    """Sets what happens while the trainer waits, in place of sleeping."""

    def put(work: Callable[[], None]) -> None:
        monkeypatch.setattr(store_engine.time, "sleep", lambda seconds: work())

    return put


def sampler(store: Path, name: str = "s1", **more) -> Sampler:
    return Sampler(FolderFiles(store), name, say=print, **more)


def test_age_0_is_the_in_process_run(raw: dict, tmp_path: Path, between_looks: Between) -> None:
    plain = fit(raw, tmp_path / "plain")
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: one.once() and None)
    stored = fit(raw, tmp_path / "stored", f"rollout.store={store}")
    assert comparable(stored) == comparable(plain)
    last = "checkpoints/step_00000004"
    same_shards(plain / last, stored / last)
    for step in range(1, 5):
        name = f"rollouts/step_{step:08d}.jsonl"
        assert (stored / name).read_bytes() == (plain / name).read_bytes()
    assert one.once() == "done"
