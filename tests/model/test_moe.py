"""Balancing experts: transformers' loss, each token of a tree once, however a step is cut."""

from collections.abc import Sequence

import pytest
import torch
from plain_models import load_plain
from test_forward import HORIZON, config_of, uneven
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rntp.model import LanguageModel
from rntp.model.microbatches import microbatches
from rntp.model.moe import Routing, balancing_loss
from rntp.model.routing import Routed, balancing_biases, routers, watched_routers
from rntp.objective.forward import build_tree, forward, forward_with_gradients
from rntp.objective.loss import loss
from rntp.objective.quantities import Counts, OtherLogprobs, loss_reads
from rntp.objective.rewards_and_advantages import (
    advantages_over_step,
    compute_rewards,
    sampler_logp,
)
from rntp.rollout.engine import InProcessEngine
from rntp.types import Context, Rollout

WEIGHT = "objective.router_weight=0.7"


def routed(seed: int, tokens: int = 11, experts: int = 6, k: int = 2) -> Routed:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(tokens, experts, dtype=torch.float64, generator=draw)
    logits[:, 0] += 2  # some are chosen more often
    return Routed(logits.requires_grad_(), logits.topk(k).indices)


@pytest.fixture(scope="module")
def shared() -> LanguageModel:
    return load_plain("mixtral", torch.float64, "tree")


@pytest.fixture(scope="module")
def plain() -> LanguageModel:
    return load_plain("mixtral", torch.float64, "none")


@pytest.fixture(scope="module")
def rollouts(shared: LanguageModel) -> list[Rollout]:
    draw = torch.Generator().manual_seed(1)
    contexts = [
        Context(n, f"doc{n}", torch.randint(1, 318, (30 - 3 * n,), generator=draw))
        for n in range(3)
    ]
    engine = InProcessEngine(
        shared, thoughts=3, budget=6, temperature=1.0, seed=0, slots=32, draw=uneven(shared)
    )
    return engine.sample(contexts, lambda c, next_token: (5, len(c) - HORIZON))


def test_the_loss_is_transformers_own() -> None:
    layers = [routed(0), routed(1), routed(2)]
    whole = Routing.of(layers)
    assert whole is not None
    choices = whole.choices_LE.sum(dim=0).tolist()
    assert sum(choices) == 3 * 11 * 2
    found = balancing_loss(whole, choices, 3 * 11)
    given = tuple(layer.logits for layer in layers)
    wanted = load_balancing_loss_func(given, num_experts=6, top_k=2)
    assert isinstance(wanted, Tensor)
    assert float(wanted) > 2.05  # uneven: even would be k
    torch.testing.assert_close(found.float(), wanted.float(), rtol=1e-6, atol=0)
    own = torch.autograd.grad(found, given)
    theirs = torch.autograd.grad(wanted, given)
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


def test_shares_of_microbatches_add_up() -> None:
    layers = [routed(0, 20), routed(1, 20)]
    whole = Routing.of(layers)
    assert whole is not None
    choices = whole.choices_LE.sum(dim=0).tolist()
    total = balancing_loss(whole, choices, 40)
    cuts = [torch.arange(0, 3), torch.arange(3, 14), torch.arange(14, 20)]
    parts = [Routing.of([layer.at(rows) for layer in layers]) for rows in cuts]
    assert Routing.total(parts).choices_LE.tolist() == whole.choices_LE.tolist()  # type: ignore[union-attr]
    shares = [balancing_loss(part, choices, 40) for part in parts if part]
    torch.testing.assert_close(torch.stack(shares).sum(), total)
    # Balanced within each, they would be something else.
    alone = [
        balancing_loss(p, p.choices_LE.sum(dim=0).tolist(), 2 * p.tokens) * p.tokens / 20
        for p in parts
        if p
    ]
    assert abs(float(torch.stack(alone).sum() - total)) > 1e-3


def test_metrics_by_hand() -> None:
    even = Routed(torch.zeros(4, 4), torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]]))
    one = Routed(torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 4)), torch.tensor([[0, 1]] * 4))
    routing = Routing.of([even, one])
    assert routing is not None
    entropy = -(0.7 * torch.tensor(0.7).log() + 0.3 * torch.tensor(0.1).log())
    assert routing.metrics() == {
        "moe/load_max": pytest.approx((1 + 2) / 2),
        "moe/idle_frac": pytest.approx((0 + 0.5) / 2),
        "moe/entropy": pytest.approx((float(torch.tensor(4.0).log()) + float(entropy)) / 2),
    }
    assert Routing.of([]) is None
    assert Routing.total([None, None]) is None


def test_experts_that_a_router_masks_have_no_entropy() -> None:
    routing = Routing.of([Routed(torch.tensor([[0.0, 0.0, float("-inf")]]), torch.tensor([[0]]))])
    assert routing is not None
    assert routing.metrics()["moe/entropy"] == pytest.approx(0.6931472)


@pytest.mark.parametrize(
    ("name", "layers", "experts"),
    [("mixtral", 2, 4), ("jamba", 2, 4), ("qwen3-next", 2, 4), ("granite-hybrid", 2, 4)],
)
def test_routers_are_found_and_say_what_they_chose(name: str, layers: int, experts: int) -> None:
    model = load_plain(name)
    assert len(routers(model.hf)) == layers
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), watched_routers(model.hf) as seen:
        model.hf(input_ids=ids, use_cache=False)
    assert [tuple(layer.logits.shape) for layer in seen] == [(17, experts)] * layers
    for layer in seen:
        assert layer.chosen.sort(dim=1).values.tolist() == (
            layer.logits.topk(2).indices.sort(dim=1).values.tolist()
        )
    with torch.no_grad(), watched_routers(model.hf, watch=False) as seen:
        model.hf(input_ids=ids, use_cache=False)
    assert seen == []


def test_models_without_experts_have_no_routers() -> None:
    assert routers(load_plain("mamba").hf) == []
    assert balancing_biases(load_plain("mixtral").hf) == []


def test_balancing_biases_are_named() -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    )
    hf = DeepseekV3ForCausalLM(config)
    assert balancing_biases(hf) == ["model.layers.1.mlp.gate.e_score_correction_bias"]


def assess(
    model: LanguageModel, rollouts: Sequence[Rollout], tokens: int, *overrides: str
) -> tuple[float, float, dict[str, Tensor], Routing]:
    """Loss, its router term, gradients and routing of a step that is cut like this."""
    config = config_of(WEIGHT, *overrides)
    reads = loss_reads(config)
    model.hf.zero_grad()
    batches = microbatches(rollouts, tokens=tokens, horizon=HORIZON)
    known = []
    with torch.no_grad():
        for batch in batches:
            tree = build_tree(model, batch, HORIZON, reads)
            outputs = forward(model, tree, temperature=1.0, watch=True)
            known.append((tree, outputs, compute_rewards(outputs, tree, batch, config)))
    rewarded = advantages_over_step([j for _, _, j in known], config)
    counted_P = torch.cat([j.counted_P for j in rewarded])
    ahead = Routing.total(s.routing for _, s, _ in known)
    counts = Counts.of(rollouts, HORIZON, counted_P, ahead)
    total = router = 0.0
    parts = []
    for i, batch in enumerate(batches):
        tree, outputs, _ = known[i]
        if reads.continuation:
            outputs = forward(model, tree, temperature=1.0, watch=True)
        else:
            live_P = rewarded[i].live_P(config)
            outputs = forward_with_gradients(
                model, batch, outputs, live_P, HORIZON, reads, temperature=1.0, watch=True
            )
        part = loss(outputs, tree, rewarded[i], counts, config, OtherLogprobs(sampler_logp(batch)))
        part.total.backward()
        total += float(part.total.detach())
        router += float(part.router)
        parts.append(outputs.routing)
    gradients = {n: p.grad.clone() for n, p in model.hf.named_parameters() if p.grad is not None}
    whole = Routing.total(parts)
    assert whole is not None
    assert ahead is not None
    assert whole.choices_LE.tolist() == ahead.choices_LE.tolist()
    return total, router, gradients, whole


@pytest.mark.parametrize("weight", ["0.1", "0"])
def test_it_depends_neither_on_sharing_nor_on_how_a_step_is_cut(
    shared: LanguageModel, plain: LanguageModel, rollouts: list[Rollout], weight: str
) -> None:
    options = (f"objective.continuation_weight={weight}",)
    total, router, gradients, routing = assess(shared, rollouts, 10**6, *options)
    assert router > 2.001
    assert float(gradients["model.layers.0.mlp.gate.weight"].norm()) > 1e-3
    assert routing.tokens == int(routing.choices_LE[0].sum()) // 2
    for model, tokens in ((shared, 60), (plain, 10**6), (plain, 60)):
        other = assess(model, rollouts, tokens, *options)
        assert other[0] == pytest.approx(total, rel=1e-6)
        assert other[1] == pytest.approx(router, rel=1e-6)
        assert other[3].tokens == routing.tokens
        assert other[3].choices_LE.tolist() == routing.choices_LE.tolist()
        for name, gradient in gradients.items():
            gap = float((other[2][name] - gradient).norm() / gradient.norm())
            assert gap < 1e-5, name  # norms of transformers work in float32


def test_the_router_term_alone_is_transformers_on_the_tokens_of_the_tree(
    plain: LanguageModel, rollouts: list[Rollout]
) -> None:
    """Each token of the tree once, from the plain sequence that ends with its segment."""
    config = config_of(WEIGHT)
    tree = build_tree(plain, rollouts, HORIZON, loss_reads(config)).tree
    layers: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for segment, length in enumerate(tree.layout.lengths):
            ids = tree.token_ids[tree.layout.unshared(segment)]
            with watched_routers(plain.hf) as seen:
                plain.hf(input_ids=ids[None], use_cache=False)
            for layer, said in zip(layers, seen, strict=True):
                layer.append(said.logits[-length:])
    given = tuple(torch.cat(layer) for layer in layers)
    wanted = load_balancing_loss_func(given, num_experts=4, top_k=2)
    _, router, _, _ = assess(plain, rollouts, 60)
    assert router == pytest.approx(float(wanted), rel=1e-5)


def test_the_term_pulls_loads_together(shared: LanguageModel, rollouts: list[Rollout]) -> None:
    """Along its gradient alone the loss falls."""
    hf = shared.hf
    start = {n: p.detach().clone() for n, p in hf.named_parameters()}
    _, before, with_, _ = assess(shared, rollouts, 10**6)
    hf.zero_grad()
    name = "model.layers.0.mlp.gate.weight"
    config_free = assess_without(shared, rollouts)
    direction = with_[name] - config_free[name]
    with torch.no_grad():
        dict(hf.named_parameters())[name] -= 0.3 * direction / direction.norm()
    _, after, _, _ = assess(shared, rollouts, 10**6)
    with torch.no_grad():
        for n, p in hf.named_parameters():
            p.copy_(start[n])
    assert after < before - 1e-4


def assess_without(model: LanguageModel, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """Gradients without the term."""
    config = config_of()
    model.hf.zero_grad()
    tree = build_tree(model, rollouts, HORIZON, loss_reads(config))
    outputs = forward(model, tree, temperature=1.0)
    rewarded = compute_rewards(outputs, tree, rollouts, config)
    counts = Counts.of(rollouts, HORIZON)
    loss(
        outputs, tree, rewarded, counts, config, OtherLogprobs(sampler_logp(rollouts))
    ).total.backward()
    return {n: p.grad.clone() for n, p in model.hf.named_parameters() if p.grad is not None}


def test_choices_of_ranks_add_up() -> None:
    one = Counts(1, 2, 3, 4, 5, 6, (1, 2, 3), 3)
    twice = {name: 2 * part for name, part in one.sums().items()}
    assert Counts.of_sums(twice) == Counts(2, 4, 6, 8, 10, 12, (2, 4, 6), 6)


def test_routing_of_ranks_adds_up() -> None:
    """Metrics of the sum over two shares are those of both shares' tokens together."""
    shares = []
    for n in (1, 2):
        choices = torch.tensor([[4 * n, 2], [1, 3 * n]])
        entropy = torch.tensor([0.5 * n, 0.25])
        shares.append(Routing(choices, choices.float(), entropy, torch.tensor([2, 2]), 6 * n))
    whole = Routing.total(shares)
    assert whole is not None
    sums = {name: part + shares[1].sums()[name] for name, part in shares[0].sums().items()}
    assert shares[0].of_sums(sums).metrics() == whole.metrics()
    assert whole.metrics()["moe/load_max"] == pytest.approx((12 / 16 * 2 + 9 / 11 * 2) / 2)
