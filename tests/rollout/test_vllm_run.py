"""A run whose thoughts vLLM's protocol brings, in the trainer and behind a store."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tiny_run
from vllm_scripted import Scripted, starting

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.rollout.store import engine as store_engine
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.sampler import Sampler
from rntp.rollout.store.sealed import unpack, unseal
from rntp.rollout.vllm import environment
from rntp.rollout.vllm.engine import VllmEngine
from rntp.rollout.vllm.process import Child
from rntp.run.log import read_metrics, read_rollouts
from rntp.trainer import Trainer


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["model"]["dtype"] = "float32"
    raw["run"] |= {"steps": 3, "timeouts_s": {"hang": 0}}
    raw["rollout"] = {"engine": "vllm"}
    raw["evaluation"] = {"docs": 0}
    return raw


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """What answers in place of vLLM."""
    found = Scripted()

    def start(self: VllmEngine, log: Path) -> Child:
        return starting(found)(log)

    monkeypatch.setattr(VllmEngine, "_start_vllm", start)
    monkeypatch.setattr(environment, "_version", lambda python: "0.32.0")
    monkeypatch.setenv(environment.NAMED_BY, "/bin/sh")
    return found


def fit(raw: dict, folder: Path, *overrides: str) -> Path:
    Trainer(Config.parse(raw, [*overrides, f"run.dir={folder}"])).fit()
    return folder


def test_a_run_samples_by_vllm(raw: dict, tmp_path: Path, scripted: Scripted) -> None:
    """Every step with the weights that it trains: sampler and policy agree to rounding."""
    folder = fit(raw, tmp_path / "run", "placement.policy=entropy", "thought.answer_tokens=2")
    rows = read_metrics(folder)
    assert len(rows) == 3
    for row in rows:
        assert 0 <= row["sampler/canary"] < 1e-4
        assert row["sampler/load_s"] > 0
        assert abs(row["kl/sampler"]) < 1e-8
        assert row["policy/ess_frac"] == pytest.approx(1, abs=1e-4)
    assert len(scripted.of("open")) == 1
    assert len(scripted.of("load")) == 2  # before steps 2 and 3
    assert "thoughts are sampled by vllm 0.32.0" in (folder / "log.txt").read_text()
    assert len(read_rollouts(folder, 2)) == 3 * 2 * 3


def test_a_run_goes_on_with_the_weights_of_its_checkpoint(
    raw: dict, tmp_path: Path, scripted: Scripted
) -> None:
    folder = fit(raw, tmp_path / "run", "run.steps=2")
    loads = len(scripted.of("load"))
    fit(raw, folder)
    assert len(scripted.of("open")) == 2
    assert len(scripted.of("load")) == loads + 1  # it opens with those of the model, then these
    assert read_metrics(folder)[2]["sampler/canary"] < 1e-4
    plain = tmp_path / "plain"
    fit({**raw, "rollout": {"engine": "inprocess"}}, plain, "run.steps=1")
    with pytest.raises(ConfigError, match=r"rollout\.engine"):
        fit(raw, plain)


def test_wrong_weights_end_a_run(
    raw: dict, tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the child goes on with the weights that it began with."""
    take = Scripted._take
    taken: list[str] = []

    def keep_the_first(self: Scripted, folder: str) -> None:
        if not taken:
            take(self, folder)
        taken.append(folder)

    monkeypatch.setattr(Scripted, "_take", keep_the_first)
    with pytest.raises(ConfigError, match=r"weights of version 1: .* to the bit"):
        fit(raw, tmp_path / "run", "optim.lr=0.01")
    assert len(scripted.of("sample")) == 1
    assert len(read_metrics(tmp_path / "run")) == 1


def test_samplers_of_a_store_sample_by_vllm(
    raw: dict, tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer needs no vLLM then; the rollouts' files name the engine."""
    store, said = tmp_path / "store", list[str]()
    one = Sampler(FolderFiles(store), "s1", say=said.append)
    look: Callable[[float], None] = lambda seconds: one.once() and None  # noqa: E731
    monkeypatch.setattr(store_engine, "sleep", look)
    keep = ["checkpoint.every_steps=9", f"rollout.samplers.store={store}"]
    folder = fit(raw, tmp_path / "stored", *keep)
    rows = read_metrics(folder)
    assert all(row["rollout/refused"] == 0 for row in rows)
    assert all(0 <= row["rollout/canary"] < 1e-4 for row in rows)
    assert rows[0]["kl/sampler"] < 1e-8
    assert any("sampled by vllm 0.32.0" in line for line in said)
    files = [path for path in sorted((store / "rollouts").rglob("*")) if path.is_file()]
    assert files
    for path in files:
        facts = unpack(unseal(str(path.relative_to(store)), path.read_bytes(), b""))[1]
        assert facts["engine"].startswith("vllm 0.32.0, torch")
    assert one.once() == "done"
    one.close()
