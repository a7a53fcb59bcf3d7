"""The step as a whole: invariances of loss and gradient, and which options change the gradient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64
from test_config import minimal

from rntp import rewards
from rntp.config import Config
from rntp.model import LanguageModel, load_model
from rntp.model.microbatches import microbatches
from rntp.model.reading import LossReads
from rntp.model.thought_tree import ThoughtTree, TokenTree, Trunk, live
from rntp.model.tree_sizes import learning_tokens
from rntp.objective.forward import build_tree, forward, forward_with_gradients
from rntp.objective.loss import loss
from rntp.objective.quantities import (
    Counts,
    ForwardOutputs,
    OtherLogprobs,
    RewardsAndAdvantages,
    loss_reads,
)
from rntp.objective.reference_model import Reference
from rntp.objective.rewards_and_advantages import (
    advantages_over_step,
    compute_rewards,
    sampler_logp,
)
from rntp.rollout.engine import InProcessEngine
from rntp.types import Context, RewardInputs, Rollout

HORIZON = 4


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    loaded = load_model(str(model_folders["llama"]), dtype=torch.float64)
    compute_norms_in_float64(loaded.hf)
    return loaded


@pytest.fixture(scope="module")
def rollouts(model: LanguageModel) -> list[Rollout]:
    generator = torch.Generator().manual_seed(1)
    contexts = [
        Context(n, f"doc{n}", torch.randint(1, 318, (30 - 3 * n,), generator=generator))
        for n in range(4)
    ]
    engine = InProcessEngine(
        model, thoughts=3, budget=6, temperature=1.0, seed=0, slots=32, draw=uneven(model)
    )
    return engine.sample(contexts, lambda c, next_token: (5, len(c) - HORIZON))


def uneven(model: LanguageModel) -> Callable:
    """Sampling that closes some thoughts early, so that lengths differ."""
    from rntp.rollout.sampling import draw

    def sample(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float):
        ids, logp = draw(logits, uniforms, temperature)
        close = uniforms < 0.2
        wide = torch.log_softmax(logits, -1)[:, model.think_close_id]
        ids = torch.where(close, model.think_close_id, ids)
        return ids, torch.where(close, wide, logp)

    return sample


def config_of(*overrides: str) -> Config:
    return Config.parse(minimal(), [f"reward.horizon={HORIZON}", *overrides])


def run(
    model: LanguageModel,
    rollouts: list[Rollout],
    config: Config,
    tokens: int = 10**6,
    reference: Reference | None = None,
    *,
    spares: bool = True,
) -> tuple[float, dict[str, torch.Tensor], list[ForwardOutputs]]:
    """Loss, gradients and outputs of one step, cut into microbatches of `tokens`.

    spares: what the loss does not read has no gradients, as in the trainer.
    """
    reads = loss_reads(config)
    reads = reads if spares else replace(reads, continuation=True)

    def assess(
        batch: tuple[Rollout, ...],
    ) -> tuple[ThoughtTree, ForwardOutputs, RewardsAndAdvantages, OtherLogprobs]:
        tree = build_tree(model, batch, HORIZON, reads)
        outputs = forward(model, tree, temperature=1.0)
        at_PH, at_M = reference.on_tree(tree, 1.0) if reference else (None, None)
        rewarded = compute_rewards(outputs, tree, batch, config, at_PH, at_M)
        return tree, outputs, rewarded, OtherLogprobs(sampler_logp(batch), at_M)

    model.hf.zero_grad()
    batches = microbatches(rollouts, tokens=tokens, horizon=HORIZON)
    ahead, counted_P = [], None
    if config.objective.needs_whole_step:
        with torch.no_grad():
            known = [assess(batch) for batch in batches]
            ahead = advantages_over_step([rewarded for _, _, rewarded, _ in known], config)
        counted_P = torch.cat([rewarded.counted_P for rewarded in ahead])
    counts, total, seen = Counts.of(rollouts, HORIZON, counted_P), 0.0, []
    for i, batch in enumerate(batches):
        if ahead and not reads.continuation:
            tree, outputs, _, others = known[i]
            alive_P = ahead[i].live_P(config)
            outputs = forward_with_gradients(
                model, batch, outputs, alive_P, HORIZON, reads, temperature=1.0
            )
            rewarded = ahead[i]
        else:
            tree, outputs, rewarded, others = assess(batch)
            rewarded = ahead[i] if ahead else rewarded
        part = loss(outputs, tree, rewarded, counts, config, others)
        part.total.backward()
        total += float(part.total.detach())
        seen.append(outputs)
    return total, {n: p.grad.clone() for n, p in model.hf.named_parameters()}, seen


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of any parameter's gradient."""
    return max(float((a[n] - b[n]).norm() / b[n].norm()) for n in b)


@pytest.mark.parametrize("ntp_weight", [0.0, 0.3])
@pytest.mark.parametrize("algorithm", ["policy_gradient", "clipped_ratio"])
def test_microbatches_change_neither_loss_nor_gradient(
    model: LanguageModel, rollouts: list[Rollout], algorithm: str, ntp_weight: float
) -> None:
    config = config_of(f"objective.algorithm={algorithm}", f"objective.ntp_weight={ntp_weight}")
    lengths = {len(t.sampled_ids) for r in rollouts for g in r.thoughts for t in g}
    assert len(lengths) >= 3  # uneven microbatches are the point
    whole, whole_grads, seen = run(model, rollouts, config)
    assert len(seen) == 1
    for tokens, pieces in ((1, 4), (220, 2)):
        cut, cut_grads, seen = run(model, rollouts, config, tokens)
        assert len(seen) == pieces
        assert cut == pytest.approx(whole, rel=1e-12)
        assert distance(cut_grads, whole_grads) < 1e-12
    order, order_grads, _ = run(model, rollouts[::-1], config)
    assert order == pytest.approx(whole, rel=1e-12)
    assert distance(order_grads, whole_grads) < 1e-12


def test_one_trunk_forward_gives_everything(
    model: LanguageModel, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    trunk = model.hf.base_model.forward

    def counted(*args, **kwargs):
        calls.append(torch.is_grad_enabled())
        return trunk(*args, **kwargs)

    monkeypatch.setattr(model.hf.base_model, "forward", counted)
    run(model, rollouts, config_of("reward.shadows=[log_ratio, logprob, exact_prefix]"))
    assert calls == [True]


def test_loss_is_the_sum_of_its_parts_by_hand(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    config = config_of(
        "objective.pg_weight=2", "objective.continuation_weight=0.5", "objective.ntp_weight=0.25"
    )
    total, _, (outputs,) = run(model, rollouts, config)
    outputs = outputs.detached()
    reward = (outputs.think_logp_PGH - outputs.no_think_logp_PH[:, None]).sum(-1)
    others = (reward.sum(1, keepdim=True) - reward) / 2
    thoughts = [t for r in rollouts for g in r.thoughts for t in g]
    advantage = (reward - others).flatten().tolist()
    pg = sum(
        -a * float(part.sum())
        for a, part in zip(
            advantage,
            outputs.thought_logp_M.split([len(t.sampled_ids) for t in thoughts]),
            strict=True,
        )
    ) / sum(len(t.sampled_ids) for t in thoughts)
    continuation = -float(outputs.think_logp_PGH.mean())
    ntp = -float(outputs.context_logp.mean())
    assert total == pytest.approx(2 * pg + 0.5 * continuation + 0.25 * ntp, rel=1e-12)
    assert abs(pg) > 1e-3


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (["baseline.weights=none"], False),  # subtracted from every member: cancels
        (["baseline.use=clip"], True),
        (["reward.scheme=logprob"], False),  # log_ratio less its baseline
        (["reward.scheme=exact_prefix"], True),
        (["reward.discount=0.5"], True),
        (["reward.shadows=[]"], False),  # shadows only watch
    ],
)
def test_which_baseline_and_reward_options_change_the_gradient(
    model: LanguageModel, rollouts: list[Rollout], overrides: list[str], changes: bool
) -> None:
    only_policy = ["objective.continuation_weight=0", "objective.ntp_weight=0"]
    for std in ([], ["objective.advantage=group_mean", "objective.advantage_std=true"]):
        plain = [*only_policy, *std, "objective.advantage_std_floor=1e-9"]
        _, base, _ = run(model, rollouts, config_of(*plain))
        _, other, _ = run(model, rollouts, config_of(*plain, *overrides))
        gap = distance(other, base)
        assert gap > 1e-3 if changes else gap < 1e-9, gap


ONLY_POLICY = ["objective.continuation_weight=0", "objective.ntp_weight=0"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["objective.ntp_weight=0.3"],
        ["objective.entropy_weight=0.1", "objective.drop_dead_groups=true"],
        ["objective.advantage=step"],
        ["objective.advantage=step", "objective.ntp_weight=0.3", "objective.algorithm=gspo"],
    ],
    ids=" ".join,
)
def test_what_the_loss_does_not_read_is_not_missed(
    model: LanguageModel, rollouts: list[Rollout], options: list[str]
) -> None:
    config = config_of(*ONLY_POLICY, *options)
    total, gradients, seen = run(model, rollouts, config, 220)
    wanted_total, wanted, wanted_seen = run(model, rollouts, config, 220, spares=False)
    assert total == pytest.approx(wanted_total, rel=1e-12)
    assert distance(gradients, wanted) < 1e-12
    for mine, true in zip(seen, wanted_seen, strict=True):
        assert true.think_logp_PGH.requires_grad
        assert not mine.think_logp_PGH.requires_grad
        assert not mine.no_think_logp_PH.requires_grad
        for name in ("thought_logp_M", "thought_entropy_M", "think_logp_PGH", "no_think_logp_PH"):
            found, exact = getattr(mine, name).detach(), getattr(true, name).detach()
            torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-13)
        assert torch.equal(mine.match_PGH, true.match_PGH)
    # With a term on continuations there is nothing to spare.
    config = config_of("objective.continuation_weight=0.1", *options)
    _, _, seen = run(model, rollouts, config, 220)
    assert all(outputs.think_logp_PGH.requires_grad for outputs in seen)


@pytest.mark.parametrize("ntp_weight", [0.0, 0.3])
@pytest.mark.parametrize("dead", [(1,), (0, 1, 2), tuple(range(8))])
def test_groups_that_left_the_gradient_leave_the_backward(
    model: LanguageModel,
    rollouts: list[Rollout],
    monkeypatch: pytest.MonkeyPatch,
    dead: tuple[int, ...],
    ntp_weight: float,
) -> None:
    """Dead groups of a reward that is made to be alike in them: 8 groups, two microbatches."""
    numbers: dict[tuple[int, ...], int] = {}  # of a group, by its continuation

    def alike(inputs: RewardInputs) -> torch.Tensor:
        reward = inputs.logp_think_PGH.sum(2)
        for p in range(len(reward)):
            key = tuple(inputs.continuation_ids_PH[p].tolist())
            if numbers.setdefault(key, len(numbers)) in dead:
                reward[p] = 1.0
        return reward

    monkeypatch.setitem(rewards.REGISTRY, "alike", alike)
    monkeypatch.setitem(rewards.BASELINES, "alike", "ignores")
    monkeypatch.setitem(rewards.NEEDS, "alike", rewards.NEEDS["logprob"])
    config = config_of(
        *ONLY_POLICY,
        f"objective.ntp_weight={ntp_weight}",
        "objective.drop_dead_groups=true",
        "reward.scheme=alike",
        "reward.shadows=[]",
    )
    outcomes, tokens = [], []
    run_tree = TokenTree.run

    def counted(tree: TokenTree, model: LanguageModel, **more: bool) -> Trunk:
        if torch.is_grad_enabled():
            tokens[-1] += tree.num_learning
        return run_tree(tree, model, **more)

    monkeypatch.setattr(TokenTree, "run", counted)
    for spares in (True, False):
        tokens.append(0)
        outcomes.append(run(model, rollouts, config, 250, spares=spares))
    (total, gradients, seen), (wanted_total, wanted, _) = outcomes
    assert len(seen) == 2
    assert total == pytest.approx(wanted_total, rel=1e-11, abs=1e-15)
    if len(dead) == 8 and not ntp_weight:
        assert all(not g.any() for g in [*gradients.values(), *wanted.values()])
    else:
        assert distance(gradients, wanted) < 1e-11
    # What was left out: thoughts of dead groups, and pages that nothing else reads.
    live_P = torch.tensor([n not in dead for n in range(8)])
    reads = loss_reads(config)
    halves = [rollouts[:2], rollouts[2:]]
    assert tokens[0] == sum(
        learning_tokens(r, HORIZON, reads)
        for half, live_half in zip(halves, live_P.split(4), strict=True)
        for r in live(half, live_half, reads)
    )
    assert tokens[0] < tokens[1] * (0.75 if ntp_weight else 0.65)


@pytest.fixture(scope="module")
def others(model: LanguageModel) -> Reference:
    """Weights that predict otherwise: nats away, as after long training."""
    reference = Reference(model, next(model.hf.parameters()).dtype, None)
    generator = torch.Generator().manual_seed(2)
    reference.restore(
        {
            name: kept * (1 + 0.3 * torch.randn(kept.shape, generator=generator))
            for name, kept in reference.tensors().items()
        }
    )
    return reference


@pytest.mark.parametrize(
    "centre",
    [
        ["objective.advantage=leave_one_out"],
        ["objective.advantage=group_mean"],
        ["objective.advantage=group_mean", "objective.advantage_std=true"],
        ["objective.advantage=none"],
        ["objective.advantage=step"],
    ],
    ids=["leave_one_out", "group_mean", "std", "none", "step"],
)
@pytest.mark.parametrize("weights", ["current", "frozen", "ema"])
@pytest.mark.parametrize(
    ("use", "changes"),
    [
        ("subtract", False),
        ("clip", True),
        ("group_member", True),
        ("position_weight", True),
        ("gate", True),
    ],
)
def test_which_baselines_change_the_policy_gradient(
    model: LanguageModel,
    rollouts: list[Rollout],
    others: Reference,
    use: str,
    changes: bool,
    weights: str,
    centre: list[str],
) -> None:
    """METHODS.md, section 5: against no baseline at all, and against other baseline weights.

    What is not compared within its group keeps a subtracted baseline: that is where it belongs.
    """
    if use == "group_member" and "objective.advantage=none" in centre:
        return  # refused: there is no mean to join
    in_group = not {"objective.advantage=none", "objective.advantage=step"} & set(centre)
    changes = changes or not in_group
    options = [*ONLY_POLICY, *centre, "objective.advantage_std_floor=1e-9"]
    _, without, _ = run(model, rollouts, config_of(*options, "baseline.weights=none"))
    cell = config_of(*options, f"baseline.weights={weights}", f"baseline.use={use}")
    _, own, _ = run(model, rollouts, cell, reference=None if weights == "current" else others)
    gap = distance(own, without)
    # The tiny model is nearly always wrong, so its position weights are close to 1.
    assert gap > 1e-4 if changes else gap < 1e-12, gap
    if weights != "current":
        current = config_of(*options, f"baseline.use={use}")
        gap = distance(own, run(model, rollouts, current)[1])
        assert gap > 1e-4 if changes else gap < 1e-12, gap


@pytest.mark.parametrize("use", ["clip", "group_member", "position_weight", "gate"])
def test_microbatches_do_not_change_a_baseline(
    model: LanguageModel, rollouts: list[Rollout], others: Reference, use: str
) -> None:
    config = config_of("baseline.weights=frozen", f"baseline.use={use}")
    whole, whole_grads, _ = run(model, rollouts, config, reference=others)
    cut, cut_grads, seen = run(model, rollouts, config, 1, others)
    assert len(seen) == 4
    assert cut == pytest.approx(whole, rel=1e-12)
    assert distance(cut_grads, whole_grads) < 1e-12


def test_random_rewards_belong_to_the_thought(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    def noise(rollouts: list[Rollout], seed: int = 0) -> torch.Tensor:
        config = config_of("reward.scheme=random", f"run.seed={seed}")
        tree = build_tree(model, rollouts, HORIZON)
        outputs = forward(model, tree, temperature=1.0)
        return compute_rewards(outputs, tree, rollouts, config).reward_PG

    whole = noise(rollouts)
    assert whole.unique().numel() == whole.numel() == 4 * 2 * 3
    assert torch.equal(whole, torch.cat([noise([r]) for r in rollouts]))
    assert not torch.isclose(whole, noise(rollouts, seed=1)).any()


def test_forced_close_markers_carry_no_policy_gradient(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    tree = build_tree(model, rollouts, HORIZON)
    thoughts = [t for r in rollouts for g in r.thoughts for t in g]
    forced = [t for t in thoughts if not t.closed]
    assert forced
    assert len(forced) < len(thoughts)
    closes = (tree.thought_targets == model.think_close_id).sum()
    assert closes == len(thoughts) - len(forced)
    assert len(tree.thought_rows) == sum(len(t.sampled_ids) for t in thoughts)


def test_rewards_are_detached_and_the_policy_term_leaves_the_continuation_alone(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    """Changing only the continuation's weight adds exactly the gradient of its own term."""
    base = ["objective.ntp_weight=0"]
    _, with_both, _ = run(model, rollouts, config_of(*base, "objective.continuation_weight=1"))
    _, only_pg, _ = run(model, rollouts, config_of(*base, "objective.continuation_weight=0"))
    _, only_text, _ = run(
        model,
        rollouts,
        config_of(*base, "objective.continuation_weight=1", "objective.pg_weight=0"),
    )
    added = {name: only_pg[name] + only_text[name] for name in only_pg}
    assert distance(added, with_both) < 1e-12


def test_clipped_ratio_moves_away_from_old_thoughts(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    config = config_of("objective.algorithm=clipped_ratio", "objective.ntp_weight=0")
    tree, counts = build_tree(model, rollouts, HORIZON), Counts.of(rollouts, HORIZON)
    outputs = forward(model, tree, temperature=1.0)
    rewarded = compute_rewards(outputs, tree, rollouts, config)
    advantage = rewarded.advantage_PG
    first = loss(outputs, tree, rewarded, counts, config, OtherLogprobs(sampler_logp(rollouts)))
    assert first.clipped_tokens == 0
    far = outputs.thought_logp_M.detach() - 2.0  # as if the policy had grown e² times likelier
    later = loss(
        outputs,
        tree,
        rewarded,
        counts,
        config,
        OtherLogprobs(sampler_logp(rollouts), old_logp_M=far),
    )
    rising = advantage.flatten()[tree.thought_index] > 0
    assert int(later.clipped_tokens) == int(rising.sum()) > 0
    assert not torch.isclose(later.pg, first.pg)


def test_scores_of_shorter_contexts_use_their_own_rows(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    with_context = forward(
        model, build_tree(model, rollouts, HORIZON, LossReads(context=True)), temperature=1.0
    )
    without = forward(model, build_tree(model, rollouts, HORIZON), temperature=1.0)
    torch.testing.assert_close(
        with_context.no_think_logp_PH, without.no_think_logp_PH, rtol=1e-12, atol=0
    )
    shuffled = [replace(r, thoughts=r.thoughts[::-1]) for r in rollouts]
    other = forward(model, build_tree(model, shuffled, HORIZON), temperature=1.0)
    assert not torch.allclose(other.think_logp_PGH, without.think_logp_PGH)


def test_collision_is_the_sum_of_all_squared_probabilities(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    tree = build_tree(model, rollouts, HORIZON)
    found = forward(model, tree, temperature=0.5, with_collision=True)
    logits = tree.tree.hidden(model) @ model.head.T
    wanted = logits.softmax(-1).square().sum(-1)[tree.think_rows_PGH]  # at 1, as rewards are
    assert found.collision_PGH is not None
    torch.testing.assert_close(found.collision_PGH, wanted.detach(), rtol=1e-9, atol=0)
    assert not found.collision_PGH.requires_grad
    assert 0 < float(wanted.min()) < float(wanted.max()) < 1
    plain = forward(model, tree, temperature=0.5)
    assert plain.collision_PGH is None


def test_a_weighted_sum_drives_and_its_parts_are_logged(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    def rewarded(*overrides: str) -> RewardsAndAdvantages:
        tree = build_tree(model, rollouts, HORIZON)
        outputs = forward(model, tree, temperature=1.0)
        return compute_rewards(outputs, tree, rollouts, config_of("reward.shadows=[]", *overrides))

    mixed = "reward.scheme={mean_prob: 0.9, format_only: 0.1}"
    plain, clipped = rewarded(mixed), rewarded(mixed, "baseline.use=clip")
    assert list(plain.rewards) == ["mean_prob", "format_only"]
    gain, closed = plain.rewards["mean_prob"], plain.rewards["format_only"]
    torch.testing.assert_close(plain.reward_PG, 0.9 * gain + 0.1 * closed)
    # The floor is of the part that compares with no thought, before it is added (RLPR).
    torch.testing.assert_close(clipped.reward_PG, 0.9 * gain.clamp_min(0) + 0.1 * closed)
    assert gain.min() < 0 < closed.min() + gain.max()
    assert len(closed.unique()) == 2
    single, one = rewarded("reward.scheme=mean_prob"), rewarded("reward.scheme={mean_prob: 1}")
    assert torch.equal(single.reward_PG, one.reward_PG)
    assert torch.equal(single.reward_PG, gain)
    twice = rewarded("reward.scheme={mean_prob: 2}")
    torch.testing.assert_close(twice.advantage_PG, 2 * single.advantage_PG)


def test_the_policy_gradient_reaches_the_answers(model: LanguageModel) -> None:
    """Answers are the policy's own tokens: with the thoughts and apart from them."""
    generator = torch.Generator().manual_seed(1)
    context = Context(0, "doc0", torch.randint(1, 318, (30,), generator=generator))
    engine = InProcessEngine(
        model, thoughts=3, budget=4, answer_tokens=3, temperature=1.0, seed=0, slots=32
    )
    (rollout,) = engine.sample([context], lambda c, next_token: (5, len(c) - HORIZON))
    config = config_of(*ONLY_POLICY, "thought.answer_tokens=3")
    tree, counts = build_tree(model, [rollout], HORIZON), Counts.of([rollout], HORIZON)
    drawn = torch.tensor([t.num_drawn for group in rollout.thoughts for t in group])
    assert counts.thought == drawn.sum() > 2 * 3 * 4  # more than the thoughts alone have
    outputs = forward(model, tree, temperature=1.0)
    rewarded = compute_rewards(outputs, tree, [rollout], config)
    drawn_at = OtherLogprobs(sampler_logp([rollout]))
    assert len(drawn_at.sampler_logp_M) == drawn.sum()
    total = loss(outputs, tree, rewarded, counts, config, drawn_at).total
    advantage = rewarded.advantage_PG
    (slope_M,) = torch.autograd.grad(total, outputs.thought_logp_M)
    expected = -advantage.flatten().repeat_interleave(drawn) / counts.thought
    torch.testing.assert_close(slope_M, expected)
    assert slope_M.abs().min() > 0
