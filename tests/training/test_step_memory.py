"""Whether a step fits: the estimate where it leaves no doubt, a page that is tried elsewhere."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run
from torch.autograd.graph import saved_tensors_hooks

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.opening import open_model
from rntp.training.estimate import Shape, memory_parts
from rntp.training.step_memory import StepMemory, kept_bytes_per_token


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    return tiny_run(model_folders["llama"], corpus, tmp_path / "run")


@pytest.fixture
def config(raw: dict) -> Config:
    return Config.parse(raw)


@pytest.fixture
def model(config: Config) -> LanguageModel:
    return open_model(config)


def test_what_layers_keep_is_what_the_estimate_says_of_a_llama() -> None:
    config = Config.load("experiments/planted/short.yaml")
    model = open_model(config)
    kept = kept_bytes_per_token(model, config)
    shape = Shape.of(model.hf)
    parts = [memory_parts(config, shape, kept_per_token=k)["activations"] for k in (None, kept)]
    assert parts[1] == pytest.approx(parts[0], rel=0.1)
    assert kept == pytest.approx(55_347, rel=0.01)  # bytes: 2 layers of 192, 640 between


def test_a_layer_more_keeps_its_share_more(model: LanguageModel, config: Config) -> None:
    """Counted is what the layers keep: without the last of two it is half, but for the final norm.
    Nothing is kept twice, and no weight."""
    whole = kept_bytes_per_token(model, config)
    layers = model.hf.base_model.layers
    last = layers[-1]
    del layers[-1]
    try:
        less = kept_bytes_per_token(model, config)
    finally:
        layers.append(last)
    hidden = model.hf.config.hidden_size
    norm = 2 * 4 * hidden  # the last norm's input, and what it has made of that
    assert whole - less == pytest.approx(less - norm, rel=0.15)
    weights = sum(t.nbytes for t in model.hf.parameters())
    assert whole < weights


@pytest.mark.parametrize(("factor", "recomputes"), [(1.0, False), (3.0, True)])
def test_a_model_that_keeps_more_than_estimated_is_found_out(
    factor: float,
    recomputes: bool,
    model: LanguageModel,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory for one and a half times what is estimated: it is what was measured that decides."""
    real = kept_bytes_per_token(model, config)
    parts = memory_parts(config, Shape.of(model.hf), kept_per_token=real)
    there = sum(parts.values()) + 0.5 * parts["activations"]
    monkeypatch.setattr("rntp.training.step_memory.total_bytes", lambda device: int(there))
    monkeypatch.setattr(
        "rntp.training.step_memory.kept_bytes_per_token", lambda model, config: factor * real
    )
    memory = StepMemory.of(config, model)
    assert memory.measured
    assert memory.recomputes is recomputes
    assert bool(memory.warnings(recompute=False)) is recomputes


def test_a_page_that_the_device_cannot_hold_is_computed_again(
    model: LanguageModel, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    estimated = sum(memory_parts(config, Shape.of(model.hf)).values())
    monkeypatch.setattr("rntp.training.step_memory.total_bytes", lambda device: 2 * estimated)
    assert not StepMemory.of(config, model).recomputes
    monkeypatch.setattr("rntp.training.step_memory.kept_bytes_per_token", full)
    memory = StepMemory.of(config, model)
    assert memory.recomputes
    assert not memory.warnings(recompute=True)


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_asked_for_is_done_untried(
    asked: bool, model: LanguageModel, raw: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> float:
        raise AssertionError("nothing is to be decided")

    monkeypatch.setattr("rntp.training.step_memory.kept_bytes_per_token", never)
    monkeypatch.setattr("rntp.training.step_memory.total_bytes", lambda device: 700_000_000)
    config = Config.parse(raw, [f"parallel.activation_checkpointing={str(asked).lower()}"])
    assert StepMemory.of(config, model).recomputes is asked


def test_trying_leaves_no_graph_behind(model: LanguageModel, config: Config) -> None:
    kept_bytes_per_token(model, config)
    seen: list[int] = []
    with saved_tensors_hooks(lambda t: seen.append(1) or t, lambda t: t):
        (torch.ones(2, requires_grad=True) ** 2).sum()
    assert seen
    assert all(weight.grad is None for weight in model.hf.parameters())
