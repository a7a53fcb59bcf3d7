"""Rewards, advantages and losses against closed forms worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from rntp import placement, rewards
from rntp.objective import losses
from rntp.objective.advantages import advantages, dead_groups, group_mean, leave_one_out
from rntp.types import Known, PlacementInputs, RewardInputs


def inputs(discount: float = 1.0) -> RewardInputs:
    """One position, three thoughts, two continuation tokens."""
    think = torch.tensor([[[0.5, 0.5], [0.25, 1.0], [0.5, 0.125]]]).log()
    return RewardInputs(
        logp_think_PGH=think,
        logp_no_think_PH=torch.tensor([[0.25, 0.5]]).log(),
        has_baseline=True,
        match_PGH=torch.tensor([[[True, True], [False, True], [True, False]]]),
        num_tokens_PG=torch.tensor([[3, 0, 8]]),
        closed_PG=torch.tensor([[True, True, False]]),
        continuation_ids_PH=torch.tensor([[5, 6]]),
        thought_ids=[[torch.arange(3), torch.arange(0), torch.arange(8)]],
        noise_PG=torch.tensor([[0.25, 0.75, 0.5]], dtype=torch.float64),
        discount=discount,
    )


@pytest.mark.parametrize(
    ("name", "discount", "expected"),
    [
        ("log_ratio", 1.0, [math.log(2), math.log(2), math.log(2) + math.log(0.25)]),
        ("log_ratio", 0.5, [math.log(2), 0.5 * math.log(2), math.log(2) + 0.5 * math.log(0.25)]),
        ("logprob", 1.0, [math.log(0.25), math.log(0.25), math.log(0.0625)]),
        ("logprob", 0.5, [1.5 * math.log(0.5), math.log(0.25), -2.5 * math.log(2)]),
        ("exact_prefix", 0.5, [2, 0, 1]),
        ("exact_token", 0.5, [1, 0, 1]),
        ("mean_prob", 0.5, [0.5 - 0.375, 0.625 - 0.375, 0.3125 - 0.375]),
        # Surprises 2 ln 2 and ln 2: weights 4/3 and 2/3.
        ("weighted_log_ratio", 1.0, [4 / 3 * math.log(2), 2 / 3 * math.log(2), 0]),
        ("weighted_log_ratio", 0.5, [k / 3 * math.log(2) for k in (4, 1, 2)]),
        ("random", 1.0, [0.25, 0.75, 0.5]),
        ("format_only", 1.0, [1, 1, 0]),
    ],
)
def test_rewards(name: str, discount: float, expected: list[float]) -> None:
    reward = rewards.REGISTRY[name](inputs(discount))
    torch.testing.assert_close(reward, torch.tensor([expected], dtype=torch.float32))


def test_rewards_at_their_edges() -> None:
    bare = replace(inputs(), logp_no_think_PH=torch.zeros(1, 2), has_baseline=False)
    # Zeros would be probabilities of 1, and no baseline subtracts nothing.
    torch.testing.assert_close(
        rewards.REGISTRY["mean_prob"](bare), torch.tensor([[0.5, 0.625, 0.3125]])
    )
    certain = replace(inputs(), logp_no_think_PH=torch.zeros(1, 2))
    torch.testing.assert_close(
        rewards.REGISTRY["weighted_log_ratio"](certain), rewards.REGISTRY["logprob"](certain)
    )


def test_a_reward_is_added_by_one_function() -> None:
    @rewards.register("shortest")
    def shortest(given: RewardInputs) -> torch.Tensor:
        return -given.num_tokens_PG.float()

    try:
        assert rewards.REGISTRY["shortest"](inputs()).tolist() == [[-3, 0, -8]]
        with pytest.raises(ValueError, match="already"):
            rewards.register("shortest")(shortest)
    finally:
        del rewards.REGISTRY["shortest"]


def test_advantages() -> None:
    reward = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert group_mean(reward).tolist() == [[-2, -1, 3], [0, 0, 0]]
    expected = torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0, 0, 0]])
    torch.testing.assert_close(leave_one_out(reward), expected)
    assert leave_one_out(reward[:, :1]).tolist() == [[0], [0]]
    std = math.sqrt((4 + 1 + 9) / 3)
    divided = advantages(reward, "group_mean", divide_by_std=True, std_floor=0.1)
    torch.testing.assert_close(divided[0], torch.tensor([-2, -1, 3]) / std)
    assert divided[1].tolist() == [0, 0, 0]  # the floor keeps a dead group finite
    floored = advantages(reward, "group_mean", divide_by_std=True, std_floor=100.0)
    torch.testing.assert_close(floored[0], torch.tensor([-2.0, -1, 3]) / 100)
    assert dead_groups(reward).tolist() == [False, True]
    assert advantages(reward, "none").tolist() == reward.tolist()


def test_advantages_over_a_whole_step() -> None:
    reward = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 7.0]], requires_grad=True)
    std = math.sqrt((9 + 4 + 4 + 0 + 0 + 9) / 6)
    found = advantages(reward, "step", std_floor=0.1)
    torch.testing.assert_close(found, torch.tensor([[-3.0, -2, 2], [0, 0, 3]]) / std)
    assert not found.requires_grad
    torch.testing.assert_close(advantages(reward, "step", std_floor=10.0), found * std / 10)
    assert advantages(torch.full((2, 3), 5.0), "step").abs().max() == 0
    # Not the same as group by group, which is what cutting a step into pieces would make of it.
    assert not torch.allclose(advantages(reward[:1], "step"), found[:1])


def test_policy_gradient_has_the_score_function_gradient() -> None:
    logits = torch.tensor([0.3, -0.2, 0.9], requires_grad=True)
    logp = torch.log_softmax(logits, 0)
    loss = losses.policy_gradient(logp[[2, 0]], torch.tensor([1.5, -0.5]))
    loss.backward()
    p = torch.softmax(logits.detach(), 0)
    onehot = torch.eye(3)
    expected = -(1.5 * (onehot[2] - p) - 0.5 * (onehot[0] - p))
    torch.testing.assert_close(logits.grad, expected)


def test_clipped_ratio() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    logp = ratio.log().requires_grad_()
    loss, clipped = losses.clipped_ratio(logp, torch.zeros(5), advantage, low=0.2, high=0.28)
    # Clipped where moving on would pay: up with a positive, down with a negative advantage.
    torch.testing.assert_close(loss, -torch.tensor(2.0 + 1.28 - 1.5 + 0.5 - 0.8))
    loss.backward()
    torch.testing.assert_close(logp.grad, torch.tensor([-2.0, 0, 1.5, -0.5, 0]))
    assert clipped == 2


def test_clipped_ratio_at_ratio_one_is_policy_gradient() -> None:
    advantage = torch.tensor([1.0, -2.0, 0.5])
    grads = []
    for use in (True, False):
        logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
        if use:
            loss, _ = losses.clipped_ratio(logp, logp, advantage, low=0.2, high=0.2)
        else:
            loss = losses.policy_gradient(logp, advantage)
        grads.append(torch.autograd.grad(loss, logp)[0])
    torch.testing.assert_close(*grads)


RATIO_CASES = {
    "ratio": torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5]),
    "advantage": torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0]),
}


def test_clipped_weights_keep_every_gradient() -> None:
    logp = RATIO_CASES["ratio"].log().requires_grad_()
    loss, clipped = losses.clipped_weight(
        logp, torch.zeros(5), RATIO_CASES["advantage"], low=0.2, high=0.28
    )
    loss.backward()
    # The weight is bounded on both sides, whatever the sign of the advantage.
    torch.testing.assert_close(logp.grad, torch.tensor([-2.0, -1.28, 1.28, -0.8, 0.8]))
    expected = -(torch.tensor([2, 1.28, -1.28, 0.8, -0.8]) * logp.detach()).sum()
    torch.testing.assert_close(loss.detach(), expected)
    assert clipped == 4
    open_below = torch.tensor([-4.0])
    _, clipped = losses.clipped_weight(
        open_below, torch.zeros(1), torch.ones(1), low=1.0, high=0.28
    )
    assert clipped == 0


def test_one_ratio_for_a_whole_thought() -> None:
    # Thoughts of 2, 1 and 3 tokens: ratios (geometric means) 2, 0.5 and 1.1.
    index = torch.tensor([0, 0, 1, 2, 2, 2])
    ratio = torch.tensor([4.0, 1.0, 0.5, 1.1, 2.2, 0.55])
    advantage = torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, -2.0])
    logp = ratio.log().requires_grad_()
    loss, clipped = losses.clipped_sequence_ratio(
        logp, torch.zeros(6), advantage, thought_index_M=index, low=0.2, high=0.28
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), -torch.tensor(2 * 1.28 + 0.5 - 3 * 2 * 1.1))
    # The first thought is clipped, with both of its tokens; the others' gradient is s · A / tokens,
    # once for each of their tokens.
    torch.testing.assert_close(logp.grad, torch.tensor([0, 0, -0.5, 2.2, 2.2, 2.2]))
    assert clipped == 2


@pytest.mark.parametrize("kind", ["clipped_ratio", "clipped_weight", "clipped_sequence_ratio"])
def test_every_ratio_at_one_is_policy_gradient(kind: str) -> None:
    advantage = torch.tensor([1.0, 1.0, -2.0, 0.5])
    more = {"thought_index_M": torch.tensor([0, 0, 1, 2])} if "sequence" in kind else {}
    logp = torch.tensor([-1.0, -4.0, -2.0, -3.0], requires_grad=True)
    (plain,) = torch.autograd.grad(losses.policy_gradient(logp, advantage), logp)
    surrogate = getattr(losses, kind)
    loss, clipped = surrogate(logp, logp, advantage, low=0.2, high=0.28, **more)
    torch.testing.assert_close(torch.autograd.grad(loss, logp)[0], plain)
    assert clipped == 0
    moved, _ = surrogate(logp, logp.detach() - 0.1, advantage, low=0.2, high=0.28, **more)
    assert not torch.allclose(torch.autograd.grad(moved, logp)[0], plain)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 - 1 + math.log(2))],
)
def test_estimators_of_a_divergence(estimator: str, expected: float) -> None:
    twice = losses.kl_per_token(torch.tensor([-1.0]), torch.tensor([-1 - math.log(2)]), estimator)
    assert twice.item() == pytest.approx(expected, rel=1e-6)
    assert losses.kl_per_token(torch.tensor([-1.0]), torch.tensor([-1.0]), estimator) == 0


def test_gradients_of_a_divergence() -> None:
    """Expected over the policy, token by token: what each estimator pulls towards, as a loss."""
    logits = torch.tensor([0.3, -0.2, 0.9, -1.5], dtype=torch.float64, requires_grad=True)
    other = torch.log_softmax(torch.tensor([-0.4, 0.8, 0.1, 0.2], dtype=torch.float64), 0)
    logp = torch.log_softmax(logits, 0)
    reverse = (logp.exp() * (logp - other)).sum()
    forward = (other.exp() * (other - logp)).sum()
    wanted = {"k1": 0 * reverse, "k2": reverse, "k3": forward}
    sampled = logp.detach().exp()
    for estimator, divergence in wanted.items():
        expected_loss = (sampled * losses.kl_per_token(logp, other, estimator)).sum()
        found, gradient = (
            torch.autograd.grad(x, logits, retain_graph=True)[0]
            for x in (expected_loss, divergence)
        )
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-14)
        if estimator != "k2":  # its value is biased
            value = reverse.detach()
            torch.testing.assert_close(expected_loss.detach(), value, rtol=1e-12, atol=0)
    assert abs(float(forward.detach() - reverse.detach())) > 0.01


def test_a_divergence_by_thought() -> None:
    logp, other = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -1.0, -3.5])
    found = losses.kl_per_thought(logp, other, torch.tensor([0, 0, 2]), "k1", thoughts=3)
    assert found.tolist() == [-0.5, 0, 0.5]


def test_likelihood_and_kl() -> None:
    assert losses.negative_log_likelihood(torch.tensor([-1.0, -2.5])) == 3.5
    weighted = losses.negative_log_likelihood(torch.tensor([-1.0, -2.5]), torch.tensor([3.0, 0.5]))
    assert weighted == 3 + 1.25
    assert losses.kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.0])) == 0
    expected = math.exp(0.5) - 1 - 0.5
    kl = losses.kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]))
    assert kl.item() == pytest.approx(expected)


def test_placement() -> None:
    given = PlacementInputs(
        Known(torch.tensor([9.0, 8, 1, 5, 3, 4, 2, 7]), torch.zeros(8)),
        noise_L=torch.tensor([0.9, 0.9, 0.1, 0.2, 0.8, 0.3, 0.4, 0.9], dtype=torch.float64),
        learned_L=torch.zeros(8),
    )

    def place(name: str, count: int) -> tuple[int, ...]:
        policy = placement.REGISTRY[name]
        return placement.place(policy, replace(given, count=count), min_prefix=2, horizon=2)

    assert place("entropy", 2) == (3, 5)  # 0, 1 lie before min_prefix, 7 has no horizon
    assert place("random", 3) == (4, 5, 6)
    with pytest.raises(ValueError, match="5 eligible positions, 6 wanted"):
        place("random", 6)
