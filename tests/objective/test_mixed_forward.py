"""The step of a model that mixes predictions with a thought and without one."""

from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64
from test_forward import HORIZON, config_of, distance, run, uneven

from rntp.model import LanguageModel, load_model
from rntp.model.mixing import without_mixing
from rntp.model.reading import LossReads
from rntp.objective.forward import build_tree, forward
from rntp.objective.quantities import Counts, loss_reads
from rntp.rollout.engine import InProcessEngine
from rntp.types import Context, Rollout

MIXES = "reading.mixing=true"


def mixing_model(folder: Path, *, sharing: str = "auto") -> LanguageModel:
    """A tiny model in float64 whose head says another weight at every token."""
    model = load_model(str(folder), dtype=torch.float64, sharing=sharing)
    compute_norms_in_float64(model.hf)
    model.add_mixing(1)
    assert model.mixing is not None
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        model.mixing.out.uniform_(-0.5, 0.9, generator=generator)
        model.mixing.shift.uniform_(-0.5, 0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    return mixing_model(model_folders["llama"])


@pytest.fixture(scope="module")
def rollouts(model: LanguageModel) -> list[Rollout]:
    generator = torch.Generator().manual_seed(1)
    contexts = [
        Context(n, f"doc{n}", torch.randint(1, 318, (30 - 3 * n,), generator=generator))
        for n in range(3)
    ]
    engine = InProcessEngine(
        model, thoughts=3, budget=6, temperature=1.0, seed=0, slots=32, draw=uneven(model)
    )
    return engine.sample(contexts, lambda c, next_token: (5, len(c) - HORIZON))


@pytest.mark.parametrize("window", [None, 3])
def test_predictions_are_the_mixture_of_those_without_the_head(
    model: LanguageModel, rollouts: list[Rollout], window: int | None
) -> None:
    tree = build_tree(model, rollouts, HORIZON, LossReads(window=window))
    with torch.no_grad():
        hidden = tree.tree.hidden(model)
        with without_mixing(model.hf):
            plain = forward(model, tree, temperature=1.0, hidden=hidden)
        mixed = forward(model, tree, temperature=1.0, hidden=hidden, with_collision=True)
    assert plain.weight_PGH is None
    assert plain.alone_logp_PGH is None
    h1, h0 = hidden[tree.think_rows_PGH], hidden[tree.no_think_rows_PH][:, None]
    with torch.no_grad():
        w = model.mixing(h0.expand_as(h1), h1).sigmoid()
    assert float(w.std()) > 0.1
    torch.testing.assert_close(mixed.weight_PGH, w, rtol=1e-12, atol=1e-12)
    p = (1 - w) * plain.no_think_logp_PH[:, None].exp() + w * plain.think_logp_PGH.exp()
    torch.testing.assert_close(mixed.think_logp_PGH, p.log(), rtol=1e-10, atol=1e-11)
    assert torch.equal(mixed.alone_logp_PGH, plain.think_logp_PGH)
    assert torch.equal(mixed.no_think_logp_PH, plain.no_think_logp_PH)
    # Of the whole vocabulary: arg-max and Σ p².
    p_V = (1 - w[..., None]) * model.logits(h0.flatten(0, 2)).softmax(-1).view(*h0.shape[:3], -1)
    p_V = p_V + w[..., None] * model.logits(h1.flatten(0, 2)).softmax(-1).view(*h1.shape[:3], -1)
    torch.testing.assert_close(mixed.collision_PGH, p_V.square().sum(-1), rtol=1e-10, atol=1e-12)
    top1 = p_V.argmax(-1)
    targets = tree.continuation_PH[:, None].expand(top1.shape)
    assert torch.equal(mixed.match_PGH, top1 == targets)
    with torch.no_grad():
        spared = forward(model, tree, temperature=1.0, hidden=hidden)
    assert torch.equal(spared.match_PGH, mixed.match_PGH)  # asked only where the two differ
    assert spared.collision_PGH is None


def test_without_weight_thinking_is_worth_nothing_and_costs_nothing(
    model_folders: dict[str, Path], rollouts: list[Rollout]
) -> None:
    model = mixing_model(model_folders["llama"])
    with torch.no_grad():
        model.mixing.shift.fill_(100)
        model.mixing.out.fill_(-1)
    config = config_of(MIXES, "reward.shadows=[log_ratio, exact_prefix]")
    _, grads, (outputs,) = run(model, rollouts, config)
    empty = outputs.no_think_logp_PH[:, None].expand_as(outputs.think_logp_PGH)
    assert torch.equal(outputs.think_logp_PGH.detach(), empty)
    assert float(outputs.weight_PGH.max()) < 1e-300
    assert float((outputs.alone_logp_PGH - empty).abs().max()) > 0.1  # thoughts do change something
    assert all(torch.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("ntp_weight", [0.0, 0.25])
@pytest.mark.parametrize("window", ["null", "3"])
def test_the_loss_is_of_mixtures_and_does_not_depend_on_how_it_is_cut(
    model: LanguageModel, rollouts: list[Rollout], ntp_weight: float, window: str
) -> None:
    config = config_of(
        MIXES,
        f"reading.window={window}",
        "thought.thoughts_per_position=3",
        "objective.pg_weight=2",
        "objective.continuation_weight=0.5",
        f"objective.ntp_weight={ntp_weight}",
    )
    total, grads, (outputs,) = run(model, rollouts, config)
    outputs = outputs.detached()
    reward = (outputs.think_logp_PGH - outputs.no_think_logp_PH[:, None]).sum(-1)
    advantage = (reward - (reward.sum(1, keepdim=True) - reward) / 2).flatten().tolist()
    drawn = [len(t.sampled_ids) for r in rollouts for g in r.thoughts for t in g]
    parts = outputs.thought_logp_M.split(drawn)
    pg = -sum(a * float(p.sum()) for a, p in zip(advantage, parts, strict=True)) / sum(drawn)
    expected = 2 * pg - 0.5 * float(outputs.think_logp_PGH.mean())
    if window != "null":
        expected -= 0.5 * float(outputs.bare_logp_PH.mean())
    if ntp_weight:
        expected -= ntp_weight * float(outputs.context_logp.mean())
    assert total == pytest.approx(expected, rel=1e-12)
    heads = {name for name in grads if name.startswith("rntp_mixing")}
    assert len(heads) == 4
    assert all(float(grads[name].norm()) > 1e-8 for name in heads)
    for tokens in (1, 200):
        cut, cut_grads, seen = run(model, rollouts, config, tokens)
        assert len(seen) > 1
        assert cut == pytest.approx(total, rel=1e-12)
        assert distance(cut_grads, grads) < 1e-11
    counts = Counts.of(rollouts, HORIZON)
    learning = counts.learning_rows(config)
    if ntp_weight:
        assert learning == counts.head_rows(config)
    elif window == "null":
        assert learning == counts.thought + counts.continuation + 6 * HORIZON
    assert loss_reads(config).continuation


def test_likelihood_teaches_both_predictions(model: LanguageModel, rollouts: list[Rollout]) -> None:
    """The gradient of −log((1 − w) p₀ + w p₁) into every weight is that of the numbers: along a
    direction it is what moving the weights gives."""
    tree = build_tree(model, rollouts[:1], HORIZON, LossReads())

    def value() -> torch.Tensor:
        return forward(model, tree, temperature=1.0).think_logp_PGH.mean()

    model.hf.zero_grad()
    value().backward()
    parameters = [p for p in model.hf.parameters() if p.grad is not None]
    generator = torch.Generator().manual_seed(4)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    along = sum(float((p.grad * d).sum()) for p, d in zip(parameters, way, strict=True))
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, way, strict=True):
                p.add_(d, alpha=sign * 1e-5)
            ends.append(float(value()))
            for p, d in zip(parameters, way, strict=True):
                p.add_(d, alpha=-sign * 1e-5)
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(along, rel=1e-5)
    model.hf.zero_grad()


@pytest.mark.parametrize("window", ["null", "3"])
def test_unshared_is_the_same(
    model: LanguageModel, rollouts: list[Rollout], model_folders: dict[str, Path], window: str
) -> None:
    config = config_of(MIXES, f"reading.window={window}", "objective.ntp_weight=0.2")
    plain = mixing_model(model_folders["llama"], sharing="none")
    assert plain.plain is not None
    total, grads, (one,) = run(model, rollouts, config)
    same, same_grads, (other,) = run(plain, rollouts, config)
    assert same == pytest.approx(total, rel=1e-11)
    assert distance(same_grads, grads) < 1e-9
    torch.testing.assert_close(other.weight_PGH, one.weight_PGH, rtol=1e-9, atol=1e-11)
