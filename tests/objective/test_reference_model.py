"""The second set of weights: what it predicts, how it follows, and that it leaves the first be."""

from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64
from test_config import minimal

from rntp.config import Config
from rntp.model import LanguageModel, load_model
from rntp.objective.forward import build_tree, forward
from rntp.objective.reference_model import Reference, open_reference
from rntp.rollout.engine import InProcessEngine
from rntp.training.estimate import Shape, Tokens, checkpoint_bytes, peak_memory, step_flop
from rntp.training.optimizer import Optimizer
from rntp.types import Context, Rollout

HORIZON = 4


def loaded(model_folders: dict[str, Path], name: str = "llama", **more) -> LanguageModel:
    return load_model(str(model_folders[name]), **more)


def rollouts_of(model: LanguageModel) -> list[Rollout]:
    contexts = [Context(n, f"d{n}", (torch.arange(30 - 5 * n) * 7 + n) % 300) for n in range(3)]
    engine = InProcessEngine(model, thoughts=2, budget=3, temperature=1.0, seed=0, slots=32)
    return engine.sample(contexts, lambda c, next_token: (5, len(c) - HORIZON))


def optimizer_of(model: LanguageModel, dtype: torch.dtype) -> Optimizer:
    optim = Config.parse(minimal(), ["optim.lr=1e-2"]).optim
    return Optimizer(model.hf, optim, dtype=dtype, total_steps=9)


@pytest.mark.parametrize("architecture", ["llama", "llama-untied", "qwen3", "olmo2", "smollm3"])
def test_the_same_weights_predict_the_same(
    model_folders: dict[str, Path], architecture: str
) -> None:
    model = loaded(model_folders, architecture, dtype=torch.float64)
    compute_norms_in_float64(model.hf)
    rollouts = rollouts_of(model)
    reference = Reference(model, torch.float64, None)
    scores = forward(model, build_tree(model, rollouts, HORIZON), temperature=1.0)
    found = reference.no_think(rollouts, HORIZON)
    torch.testing.assert_close(found, scores.no_think_logp_PH, rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    assert found.std() > 0.1


def test_frozen_weights_stay_and_live_ones_are_never_touched(
    model_folders: dict[str, Path],
) -> None:
    model = loaded(model_folders)
    rollouts = rollouts_of(model)
    frozen = Reference(model, torch.float32, None)
    average = Reference(model, torch.float32, 0.5)
    optimizer = optimizer_of(model, torch.float32)
    before = frozen.no_think(rollouts, HORIZON)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.mul_(1.1)
    live = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    for reference in (frozen, average):
        reference.update(optimizer.masters)
        reference.no_think(rollouts, HORIZON)
    for name, parameter in model.hf.named_parameters():
        assert torch.equal(parameter, live[name])
        assert parameter.requires_grad
    assert torch.equal(frozen.no_think(rollouts, HORIZON), before)
    assert not torch.allclose(average.no_think(rollouts, HORIZON), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_of_the_masters_and_goes_on_from_a_checkpoint(
    model_folders: dict[str, Path], dtype: torch.dtype
) -> None:
    model = loaded(model_folders)
    decay = 0.9
    reference, other = Reference(model, dtype, decay), Reference(model, dtype, decay)
    optimizer = optimizer_of(model, dtype)
    expected = {name: m.detach().double() for name, m in optimizer.masters.items()}
    start = {name: m.clone() for name, m in expected.items()}
    for step in range(4):
        with torch.no_grad():  # far below what bfloat16 resolves: 1e-4 of a weight
            for name, master in optimizer.masters.items():
                master.mul_(1 + 1e-4)
                expected[name] = decay * expected[name] + (1 - decay) * master.double()
        reference.update(optimizer.masters)
        if step == 1:
            other.restore({name: kept.clone() for name, kept in reference.tensors().items()})
        if step > 1:
            other.update(optimizer.masters)
    rollouts = rollouts_of(model)
    moved = reference.no_think(rollouts, HORIZON)
    assert torch.equal(other.no_think(rollouts, HORIZON), moved)
    for name, kept in reference.tensors().items():
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept.double(), expected[name], rtol=1e-6, atol=1e-9)
        assert not torch.equal(kept.double(), start[name])
        assert torch.equal(kept, other.tensors()[name])


@pytest.mark.parametrize(
    ("weights", "dtype", "memory", "disk"),
    [
        ("current", "bfloat16", 0, 0),
        ("frozen", "bfloat16", 2, 2),
        ("ema", "bfloat16", 4 + 2, 4),
        ("frozen", "float32", 4, 4),
        ("ema", "float64", 8, 8),
    ],
)
def test_the_copy_is_counted(weights: str, dtype: str, memory: int, disk: int) -> None:
    shape = Shape(10**6, 10**6, 8, 16, 2, 50)

    def sizes(weights: str) -> tuple[float, float]:
        config = Config.parse(minimal(), [f"baseline.weights={weights}", f"model.dtype={dtype}"])
        return peak_memory(config, shape), checkpoint_bytes(config, shape.parameters)

    more = [a - b for a, b in zip(sizes(weights), sizes("none"), strict=True)]
    assert more == pytest.approx([memory * 1e6, disk * 1e6])
    assert sizes("none")[1] == 3e6 * (8 if dtype == "float64" else 4)
    if weights != "current":  # a divergence from the same weights has the same copy
        options = [f"model.dtype={dtype}", f"objective.kl_reference={weights}"]
        kept = Config.parse(minimal(), [*options, "objective.kl_weight=0.1"])
        assert (peak_memory(kept, shape), checkpoint_bytes(kept, 10**6)) == sizes(weights)


def test_second_forwards_are_counted() -> None:
    shape = Shape(10**6, 10**6, 8, 16, 2, 50)

    def flop(*overrides: str) -> float:
        config = Config.parse(minimal(), overrides)
        tokens = Tokens(
            tree=100, learning=100, unshared=0, read=30, sampled=5, head_rows=10, learning_rows=10
        )
        return step_flop(config, shape, tokens)

    row = 2 * 8 * 50
    plain = 6e6 * 100 + 4 * row * 10 + (2e6 + row) * 35
    assert flop() == plain
    assert flop("objective.advantage=step") == plain + 2e6 * 100 + row * 10
    assert flop("objective.drop_dead_groups=true") == plain + 2e6 * 100 + row * 10
    assert flop("objective.kl_weight=0.1") == plain + 2e6 * 100
    assert flop("baseline.weights=frozen") == plain + 2e6 * 30


def test_only_two_baselines_and_a_divergence_need_it(model_folders: dict[str, Path]) -> None:
    model = loaded(model_folders)

    def opened(weights: str) -> Reference | None:
        config = Config.parse(minimal(), [f"baseline.weights={weights}", "baseline.decay=0.99"])
        return open_reference(model, config, torch.bfloat16)

    def kept(*options: str) -> Reference | None:
        config = Config.parse(minimal(), [f"objective.{option}" for option in options])
        return open_reference(model, config, torch.bfloat16)

    assert opened("current") is opened("none") is None
    assert kept("kl_reference=ema") is None  # of weight 0
    assert kept("kl_weight=0.1").decay is None
    assert kept("kl_weight=0.1", "kl_reference=ema").decay == 0.999
    assert opened("frozen").decay is None
    assert opened("ema").decay == 0.99
