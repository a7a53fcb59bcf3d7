"""Every term and option of the loss, on a tree: by hand, against autograd, however it is cut."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_forward import HORIZON, config_of, distance, model, others, rollouts, run

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.thought_tree import ThoughtTree
from rntp.objective.credit import credit
from rntp.objective.forward import build_tree, forward
from rntp.objective.group_spread import GroupSpread
from rntp.objective.loss import Loss, loss
from rntp.objective.quantities import Counts, ForwardOutputs, OtherLogprobs, RewardsAndAdvantages
from rntp.objective.reference_model import Reference
from rntp.objective.rewards_and_advantages import (
    advantages_over_step,
    compute_rewards,
    sampler_logp,
)
from rntp.objective.rounding import USUAL
from rntp.types import Rollout

_ = (model, rollouts, others)  # fixtures

NOTHING_ELSE = [
    "objective.pg_weight=0",
    "objective.continuation_weight=0",
    "objective.ntp_weight=0",
]
ONLY_POLICY = NOTHING_ELSE[1:]

Case = tuple[ThoughtTree, ForwardOutputs, RewardsAndAdvantages, Counts]


def case(model: LanguageModel, rollouts: list[Rollout], config: Config) -> Case:
    """One microbatch of everything, rewarded."""
    tree = build_tree(model, rollouts, HORIZON)
    outputs = forward(model, tree, temperature=1.0)
    rewarded = compute_rewards(outputs, tree, rollouts, config)
    return tree, outputs, rewarded, Counts.of(rollouts, HORIZON, rewarded.counted_P)


def lengths(rollouts: list[Rollout]) -> list[int]:
    return [len(t.sampled_ids) for r in rollouts for group in r.thoughts for t in group]


def by_thought(values_M: torch.Tensor, rollouts: list[Rollout]) -> torch.Tensor:
    """Sums over the tokens of each thought, by hand."""
    return torch.stack([part.sum() for part in values_M.split(lengths(rollouts))])


@pytest.mark.parametrize(
    "options",
    [
        ["advantage=step"],
        ["advantage=step", "normalize=thoughts", "algorithm=gspo"],
        ["advantage=none", "importance_cap=1.0"],
        ["drop_dead_groups=true"],
        ["drop_dead_groups=true", "advantage=step", "normalize=budget"],
        ["kl_weight=0.1", "entropy_weight=0.2", "normalize=thoughts"],
        ["kl_weight=0.1", "kl_estimator=k2", "normalize=budget", "algorithm=cispo"],
        ["kl_weight=0.1", "kl_in=reward", "kl_estimator=k1", "advantage=step"],
        *[[f"continuation_use={use}"] for use in ("reward", "positive", "posterior")],
    ],
    ids=" ".join,
)
def test_microbatches_change_nothing(
    model: LanguageModel, rollouts: list[Rollout], others: Reference, options: list[str]
) -> None:
    scheme = "format_only" if "drop_dead_groups=true" in options else "log_ratio"
    config = config_of(f"reward.scheme={scheme}", *(f"objective.{o}" for o in options))
    whole, whole_grads, _ = run(model, rollouts, config, reference=others)
    for tokens, pieces in ((1, 4), (220, 2)):
        cut, cut_grads, seen = run(model, rollouts, config, tokens, others)
        assert len(seen) == pieces
        assert cut == pytest.approx(whole, rel=1e-12)
        assert distance(cut_grads, whole_grads) < 1e-12
    plain = config_of(f"reward.scheme={scheme}")
    assert distance(run(model, rollouts, plain)[1], whole_grads) > 1e-6


@pytest.mark.parametrize("normalize", ["tokens", "thoughts", "budget"])
def test_one_epoch_on_policy_is_one_gradient(
    model: LanguageModel, rollouts: list[Rollout], normalize: str
) -> None:
    options = [*ONLY_POLICY, f"objective.normalize={normalize}"]
    _, plain, _ = run(model, rollouts, config_of(*options))
    for algorithm in ("clipped_ratio", "cispo", "gspo"):
        config = config_of(*options, f"objective.algorithm={algorithm}")
        assert distance(run(model, rollouts, config)[1], plain) < 1e-12


def test_algorithms_part_when_weights_have_moved(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    tree, outputs, rewarded, counts = case(model, rollouts, config_of())
    generator = torch.Generator().manual_seed(5)
    shift = torch.rand(outputs.thought_logp_M.shape, generator=generator, dtype=torch.float64) - 0.5
    ratio = shift.exp()
    old = OtherLogprobs(sampler_logp(rollouts), old_logp_M=outputs.thought_logp_M.detach() - shift)
    advantage = rewarded.advantage_PG.flatten()[tree.thought_index]

    def slope(algorithm: str) -> tuple[torch.Tensor, Loss]:
        config = config_of(*ONLY_POLICY, f"objective.algorithm={algorithm}")
        part = loss(outputs, tree, rewarded, counts, config, old)
        (found,) = torch.autograd.grad(part.total, outputs.thought_logp_M, retain_graph=True)
        return found * counts.thought, part

    cut = torch.where(advantage > 0, ratio > 1.28, ratio < 0.8)
    clipped, part = slope("clipped_ratio")
    torch.testing.assert_close(clipped, -advantage * torch.where(cut, 0, ratio))
    assert part.clipped_tokens == cut.sum() > 0
    weighted, part = slope("cispo")
    torch.testing.assert_close(weighted, -advantage * ratio.clamp(0.8, 1.28))
    assert part.clipped_tokens == ((ratio > 1.28) | (ratio < 0.8)).sum()
    tokens = torch.tensor(lengths(rollouts), dtype=torch.float64)
    s = (by_thought(shift, rollouts) / tokens).exp()[tree.thought_index]
    cut = torch.where(advantage > 0, s > 1.28, s < 0.8)
    sequence, part = slope("gspo")
    torch.testing.assert_close(sequence, -advantage * torch.where(cut, 0, s))
    assert part.clipped_tokens == cut.sum() > 0


@pytest.mark.parametrize("normalize", ["tokens", "thoughts", "budget"])
def test_denominators_by_hand(
    model: LanguageModel, rollouts: list[Rollout], normalize: str
) -> None:
    """Of all groups, and without the dead ones: of policy gradient, entropy and divergence."""
    terms = ["objective.pg_weight=1", "objective.entropy_weight=0.5", "objective.kl_weight=0.25"]
    for drop in (False, True):
        config = config_of(
            *ONLY_POLICY,
            *terms,
            "reward.scheme=format_only",
            f"objective.normalize={normalize}",
            f"objective.drop_dead_groups={drop}",
        )
        tree, outputs, rewarded, counts = case(model, rollouts, config)
        closed = [[float(t.closed) for t in group] for r in rollouts for group in r.thoughts]
        reward = torch.tensor(closed, dtype=torch.float64)
        alive = reward.std(dim=1) > 0
        assert 0 < alive.sum() < len(alive)
        reference = OtherLogprobs(
            sampler_logp(rollouts), reference_logp_M=outputs.thought_logp_M.detach() + 0.5
        )
        part = loss(outputs, tree, rewarded, counts, config, reference)

        advantage = (reward - (reward.sum(1, keepdim=True) - reward) / 2).flatten()
        tokens = torch.tensor(lengths(rollouts), dtype=torch.float64)
        every = torch.ones(len(tokens), dtype=torch.bool)
        counted = alive.repeat_interleave(3) if drop else every

        def mean(values_M: torch.Tensor, which: torch.Tensor, tokens: torch.Tensor = tokens):
            sums = by_thought(values_M, rollouts)[which]
            if normalize == "thoughts":
                return float((sums / tokens[which]).mean())
            budget = 8 * which.sum()  # thought.thought_tokens of `minimal`
            return float(sums.sum() / (tokens[which].sum() if normalize == "tokens" else budget))

        logp = outputs.thought_logp_M.detach()
        pg = -mean(logp * advantage[tree.thought_index], counted)
        entropy = mean(outputs.thought_entropy_M.detach(), every)
        kl = mean(torch.full_like(logp, torch.e**0.5 - 1.5), every)
        assert float(part.pg) == pytest.approx(pg, rel=1e-6)  # a reward of float32
        assert float(part.entropy) == pytest.approx(entropy, rel=1e-10)
        assert float(part.kl) == pytest.approx(kl, rel=1e-10)
        assert float(part.total.detach()) == pytest.approx(
            float(part.pg) - 0.5 * entropy + 0.25 * kl, rel=1e-10
        )
        assert rewarded.counted_P.tolist() == (alive.tolist() if drop else [True] * len(alive))


def test_dead_groups_do_not_move_a_whole_step_either(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    """With advantages of the step they would have some: dropped, nothing is compared with them."""
    options = ["reward.scheme=format_only", "objective.advantage=step"]
    kept, dropped = (
        case(model, rollouts, config_of(*options, f"objective.drop_dead_groups={drop}"))[2]
        for drop in (False, True)
    )
    dead = ~dropped.counted_P
    assert dead.any()
    assert kept.advantage_PG[dead].abs().min() > 0
    assert dropped.advantage_PG[dead].abs().max() == 0
    alive = dropped.advantage_PG[~dead]
    assert float(alive.mean()) == pytest.approx(0, abs=1e-6)
    assert float(alive.std(correction=0)) == pytest.approx(1, rel=1e-6)


def test_groups_that_lie_closer_than_usual_are_dropped() -> None:
    """Less than half of the usual 1, and not what is equal to it; nothing is usual at first."""
    config = config_of("objective.drop_groups_below=0.5")
    reward = torch.tensor([[0.0, 0, 0], [1, 1, 1.5], [0, 1.5, 0], [0, 3, 0]])
    empty = torch.zeros(4, HORIZON)
    for usual, counted in ((0.0, [True] * 4), (1.0, [False, False, True, True])):
        advantage, found = credit(reward, empty, config, usual)
        assert found.tolist() == counted
        others = (reward.sum(1, keepdim=True) - reward) / 2
        torch.testing.assert_close(advantage, (reward - others) * found[:, None])
    even = credit(torch.tensor([[-1.0, 1.0]]), empty[:1], config, 2.0)[1]  # exactly at the bound
    assert even.tolist() == [True]
    broken = reward.clone()
    broken[0, 0] = float("nan")
    advantage, found = credit(broken, empty, config, 1.0)
    assert found.tolist() == [True, False, True, True]
    assert advantage[0].isnan().all()
    dead = config_of("objective.drop_groups_below=0")
    assert credit(reward, empty, dead, 0.0)[1].tolist() == [False, True, True, True]


def test_what_is_usual_is_a_running_mean() -> None:
    spread = GroupSpread()
    assert spread.mean == 0
    spread.observe(torch.tensor([1.0, 3.0]))
    assert spread.mean == 2
    spread.observe(torch.tensor([1.0]))
    assert spread.mean == pytest.approx(0.9 * 2 + 0.1 * 1)
    other = GroupSpread()
    other.restore({name: tensor.clone() for name, tensor in spread.tensors().items()})
    for each in (spread, other):
        each.observe(torch.tensor([0.0]))
    assert spread.mean == other.mean == pytest.approx(0.9 * 1.9)


def test_a_step_without_any_live_group(model: LanguageModel, rollouts: list[Rollout]) -> None:
    config = config_of("reward.scheme=format_only", "objective.drop_dead_groups=true")
    dropped = case(model, rollouts, config)[2]
    nothing = replace(dropped, driving_PG=torch.ones_like(dropped.driving_PG))
    (found,) = advantages_over_step([nothing], config)
    assert not found.counted_P.any()
    assert found.advantage_PG.abs().max() == 0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_entropy_bonus_against_the_dense_softmax(
    model: LanguageModel, rollouts: list[Rollout], temperature: float
) -> None:
    config = config_of(*NOTHING_ELSE, "objective.entropy_weight=0.3")
    tree, counts = build_tree(model, rollouts, HORIZON), Counts.of(rollouts, HORIZON)

    def gradient(total: Callable[[], torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
        model.hf.zero_grad()
        value = total()
        value.backward()
        grads = {n: p.grad.clone() for n, p in model.hf.named_parameters()}
        return float(value.detach()), grads

    def ours() -> torch.Tensor:
        outputs = forward(model, tree, temperature=temperature)
        rewarded = compute_rewards(outputs, tree, rollouts, config)
        return loss(
            outputs, tree, rewarded, counts, config, OtherLogprobs(sampler_logp(rollouts))
        ).total

    def dense() -> torch.Tensor:
        logits = tree.tree.hidden(model)[tree.thought_rows] @ model.head.T / temperature
        logp = torch.log_softmax(logits, -1)
        return 0.3 * (logp.exp() * logp).sum(-1).mean()

    value, found = gradient(ours)
    wanted, expected = gradient(dense)
    assert value == pytest.approx(wanted, rel=1e-12)
    assert value < -0.1
    assert distance(found, expected) < 1e-10


def test_the_reference_reads_the_whole_tree_at_once(
    model: LanguageModel,
    rollouts: list[Rollout],
    others: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = build_tree(model, rollouts, HORIZON)
    own = Reference(model, next(model.hf.parameters()).dtype, None)
    outputs = forward(model, tree, temperature=0.7)
    calls = []
    trunk = own._model.hf.base_model.forward
    monkeypatch.setattr(
        own._model.hf.base_model, "forward", lambda **more: calls.append(1) or trunk(**more)
    )
    empty_PH, logp_M = own.on_tree(tree, 0.7)
    assert calls == [1]
    torch.testing.assert_close(logp_M, outputs.thought_logp_M.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(empty_PH, own.no_think(rollouts, HORIZON), rtol=1e-12, atol=1e-12)
    assert not logp_M.requires_grad
    assert (others.on_tree(tree, 0.7)[1] - logp_M).abs().mean() > 0.1


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_divergence_in_the_loss(
    model: LanguageModel, rollouts: list[Rollout], others: Reference, estimator: str
) -> None:
    config = config_of(
        *NOTHING_ELSE, "objective.kl_weight=0.5", f"objective.kl_estimator={estimator}"
    )
    total, grads, (outputs,) = run(model, rollouts, config, reference=others)
    other = others.on_tree(build_tree(model, rollouts, HORIZON), 1.0)[1]
    gap = outputs.thought_logp_M.detach() - other
    values = {"k1": gap, "k2": gap**2 / 2, "k3": (-gap).exp() - 1 + gap}
    slopes = {"k1": torch.ones_like(gap), "k2": gap, "k3": 1 - (-gap).exp()}
    assert total == pytest.approx(0.5 * float(values[estimator].mean()), rel=1e-10)

    model.hf.zero_grad()
    again = forward(model, build_tree(model, rollouts, HORIZON), temperature=1.0)
    (0.5 * slopes[estimator] * again.thought_logp_M).mean().backward()
    wanted = {n: p.grad.clone() for n, p in model.hf.named_parameters()}
    assert distance(grads, wanted) < 1e-10
    # Against the weights themselves there is nothing to hold on to, unless the estimator is k1.
    same = Reference(model, next(model.hf.parameters()).dtype, None)
    total, grads, _ = run(model, rollouts, config, reference=same)
    assert total == pytest.approx(0, abs=1e-12)
    size = max(float(g.abs().max()) for g in grads.values())
    assert size > 1e-3 if estimator == "k1" else size < 1e-12


def test_a_divergence_in_the_reward(
    model: LanguageModel, rollouts: list[Rollout], others: Reference
) -> None:
    """LaTRO: r − β (log π(thought) − log π_0(thought)), before centring, without a gradient."""
    options = ["objective.kl_in=reward", "objective.kl_estimator=k1"]
    config = config_of(*ONLY_POLICY, *options, "objective.kl_weight=0.05")
    tree, outputs, without, counts = case(model, rollouts, config_of(*ONLY_POLICY))
    reference_M = others.on_tree(tree, 1.0)[1]
    rewarded = compute_rewards(outputs, tree, rollouts, config, None, reference_M)
    sums = by_thought(outputs.thought_logp_M.detach() - reference_M, rollouts)
    expected = without.reward_PG - 0.05 * sums.view(without.reward_PG.shape)
    torch.testing.assert_close(rewarded.driving_PG, expected)
    assert torch.equal(rewarded.reward_PG, without.reward_PG)  # the record stays the scheme's
    others = (expected.sum(1, keepdim=True) - expected) / 2
    torch.testing.assert_close(rewarded.advantage_PG, expected - others)
    assert not torch.allclose(rewarded.advantage_PG, without.advantage_PG, rtol=1e-2)

    part = loss(
        outputs,
        tree,
        rewarded,
        counts,
        config,
        OtherLogprobs(sampler_logp(rollouts), reference_logp_M=reference_M),
    )
    (slope,) = torch.autograd.grad(part.total, outputs.thought_logp_M)
    advantage = rewarded.advantage_PG.flatten()[tree.thought_index]
    torch.testing.assert_close(slope, -advantage / counts.thought)
    assert part.kl == 0


@pytest.mark.parametrize("use", ["reward", "positive", "posterior"])
def test_shares_of_the_continuation(
    model: LanguageModel, rollouts: list[Rollout], use: str
) -> None:
    config = config_of(
        "objective.pg_weight=0",
        "objective.ntp_weight=0",
        "objective.continuation_weight=2",
        f"objective.continuation_use={use}",
    )
    tree, outputs, rewarded, counts = case(model, rollouts, config)
    think = outputs.think_logp_PGH.detach()
    share = {
        "reward": rewarded.reward_PG.clamp_min(0),
        "positive": (rewarded.advantage_PG > 0).double(),
        "posterior": 3 * torch.softmax(think.sum(2), 1),
    }[use]
    assert 0 < share.min() < share.max() or share.min() == 0 < share.max()
    part = loss(outputs, tree, rewarded, counts, config, OtherLogprobs(sampler_logp(rollouts)))
    wanted = -float((share[:, :, None] * think).mean())
    assert float(part.total.detach()) == pytest.approx(2 * wanted, rel=1e-10)
    (slope,) = torch.autograd.grad(part.total, outputs.think_logp_PGH)
    torch.testing.assert_close(slope, (-2 * share / think.numel())[:, :, None].expand(think.shape))


def test_tokens_of_another_sampler(model: LanguageModel, rollouts: list[Rollout]) -> None:
    config = config_of(*ONLY_POLICY, "objective.importance_cap=2")
    tree, outputs, rewarded, counts = case(model, rollouts, config)
    logp = outputs.thought_logp_M.detach()
    own = loss(outputs, tree, rewarded, counts, config, OtherLogprobs(sampler_logp_M=logp))
    plain = loss(
        outputs,
        tree,
        rewarded,
        counts,
        config_of(*ONLY_POLICY),
        OtherLogprobs(sampler_logp(rollouts)),
    )
    assert torch.equal(own.total, plain.total)
    ratio = torch.linspace(0.1, 4, len(logp), dtype=torch.float64)
    stale = OtherLogprobs(sampler_logp_M=logp - ratio.log())
    weight = ratio.clamp_max(2)
    advantage = rewarded.advantage_PG.flatten()[tree.thought_index]
    for algorithm in ("policy_gradient", "clipped_ratio", "cispo"):
        config = config_of(
            *ONLY_POLICY, "objective.importance_cap=2", f"objective.algorithm={algorithm}"
        )
        part = loss(outputs, tree, rewarded, counts, config, stale)
        (slope,) = torch.autograd.grad(part.total, outputs.thought_logp_M, retain_graph=True)
        torch.testing.assert_close(slope, -weight * advantage / counts.thought)
    # On later epochs the weight is that of the policy which the ratios start from.
    later = replace(stale, old_logp_M=logp - 0.1)
    (slope,) = torch.autograd.grad(
        loss(outputs, tree, rewarded, counts, config, later).total, outputs.thought_logp_M
    )
    moved = (logp - 0.1 - stale.sampler_logp_M).exp().clamp_max(2) * torch.e**0.1
    torch.testing.assert_close(slope, -moved * advantage / counts.thought)


STALE = ("rollout.samplers.start=1", "rollout.samplers.max_age=4")


def test_what_is_old_starts_from_the_sampler(model: LanguageModel, rollouts: list[Rollout]) -> None:
    """With samplers of some age: weights of 2 at most, none outside 0.5 … 5, by themselves."""
    config = config_of(*ONLY_POLICY, *STALE)
    tree, outputs, rewarded, counts = case(model, rollouts, config)
    assert rewarded.rounding.nats == pytest.approx(USUAL[config.model.dtype])  # none is measured
    logp = outputs.thought_logp_M.detach()
    ratio = torch.linspace(0.3, 6, len(logp), dtype=torch.float64)
    stale = OtherLogprobs(sampler_logp_M=logp - ratio.log())
    advantage = rewarded.advantage_PG.flatten()[tree.thought_index]
    kept = (ratio >= 0.5) & (ratio <= 5)
    assert 0 < kept.sum() < len(kept)
    low, high = ratio < 1 - 0.2, ratio > 1 + 0.28
    clipped = torch.where(advantage > 0, high, low)
    expected = {
        "policy_gradient": ratio.clamp_max(2) * kept,
        "clipped_ratio": ratio * ~clipped * kept,
        "cispo": ratio.clamp(0.8, 1.28) * kept,
        # As it is asked for: tokens as drawn, or weights around the policy of the first forward.
        "{policy_gradient: {importance_cap: 0, importance_mask: [0, 0]}}": torch.ones_like(ratio),
        "{clipped_ratio: {importance_cap: 3}}": ratio.clamp_max(3) * kept,
    }
    for algorithm, weight in expected.items():
        config = config_of(*ONLY_POLICY, *STALE, f"objective.algorithm={algorithm}")
        part = loss(outputs, tree, rewarded, counts, config, stale)
        (slope,) = torch.autograd.grad(part.total, outputs.thought_logp_M, retain_graph=True)
        torch.testing.assert_close(slope, -weight * advantage / counts.thought, msg=algorithm)


def test_what_is_old_by_whole_thoughts(model: LanguageModel, rollouts: list[Rollout]) -> None:
    of = "objective.algorithm={policy_gradient: {importance_of: thought}}"
    config = config_of(*ONLY_POLICY, *STALE, of)
    tree, outputs, rewarded, counts = case(model, rollouts, config)
    logp, index = outputs.thought_logp_M.detach(), tree.thought_index
    away = torch.linspace(-0.4, 1.4, len(logp), dtype=torch.float64)
    means = torch.stack([away[index == i].mean() for i in index.unique()]).exp()
    weight = torch.where((means < 0.5) | (means > 5), 0.0, means.clamp_max(2))
    assert len(weight.unique()) > 3
    stale = OtherLogprobs(sampler_logp_M=logp - away)
    part = loss(outputs, tree, rewarded, counts, config, stale)
    (slope,) = torch.autograd.grad(part.total, outputs.thought_logp_M)
    of_thought = weight[torch.searchsorted(index.unique(), index)]
    advantage = rewarded.advantage_PG.flatten()[index]
    torch.testing.assert_close(slope, -of_thought * advantage / counts.thought)


def test_sampler_log_probs_are_in_the_order_of_the_tree(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    at_1 = forward(model, build_tree(model, rollouts, HORIZON), temperature=1.0)
    found = sampler_logp(rollouts).double()
    torch.testing.assert_close(found, at_1.thought_logp_M.detach(), rtol=1e-4, atol=1e-4)
    assert sampler_logp([]).shape == (0,)
