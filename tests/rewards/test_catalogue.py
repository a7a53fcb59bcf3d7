"""Rewards of the catalogue that need no answer, against closed forms worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from rntp import rewards
from rntp.objective.reward_inputs import length_budget, price
from rntp.types import RewardInputs

EDGE = 1e-6


def inputs(probabilities: list[list[float]], empty: list[float], **more) -> RewardInputs:
    """One position; probabilities of its continuation tokens, by thought, and without one."""
    think = torch.tensor([probabilities]).log()
    group = len(probabilities)
    given = RewardInputs(
        logp_think_PGH=think,
        logp_no_think_PH=torch.tensor([empty]).log(),
        has_baseline=True,
        match_PGH=think > -1,
        num_tokens_PG=torch.full((1, group), 4),
        closed_PG=torch.ones(1, group, dtype=torch.bool),
        continuation_ids_PH=torch.zeros(1, len(empty), dtype=torch.int64),
        thought_ids=[],
        noise_PG=torch.zeros(1, group),
        discount=1.0,
    )
    return replace(given, **more)


def reward(name: str, given: RewardInputs) -> list[float]:
    found = rewards.REGISTRY[name](given)
    assert found.shape == given.num_tokens_PG.shape
    return found[0].tolist()


def test_prob() -> None:
    given = inputs([[0.5, 0.5], [0.25, 1.0], [1.0, 1.0]], [0.5, 0.5])
    assert reward("prob", given) == pytest.approx([0.25, 0.25, 1])
    unfinished = replace(given, closed_PG=torch.tensor([[True, False, True]]))
    assert reward("prob", unfinished) == pytest.approx([0.25, 0, 1])
    # Sixty tokens of 1/4 each: gone, where the log-probability is not.
    long = inputs([[0.25] * 60, [0.2] * 60], [0.5] * 60)
    assert max(reward("prob", long)) < 1e-36
    assert reward("logprob", long) == pytest.approx([60 * math.log(0.25), 60 * math.log(0.2)])


def test_brier() -> None:
    given = inputs([[1.0, 1.0], [0.5, 1.0], [0.0, 0.0]], [0.5, 0.5])
    assert reward("brier", given) == pytest.approx([0, -0.125, -1])


def test_brier_full() -> None:
    """Three tokens; Σ_v (p_v − 1[v = x])², worked out over all of them."""
    spread, pointed = (0.5, 0.25, 0.25), (0.5, 0.5, 0.0)
    given = inputs([[0.5], [0.5], [1.0], [0.0]], [0.5])
    squares = [sum(p * p for p in spread), sum(p * p for p in pointed), 1.0, 1.0]
    given = replace(given, collision_PGH=torch.tensor([[[s] for s in squares]]))
    by_hand = [(1 - p[0]) ** 2 + p[1] ** 2 + p[2] ** 2 for p in (spread, pointed)]
    assert by_hand == [0.375, 0.5]
    assert reward("brier_full", given) == pytest.approx([-0.375, -0.5, 0, -2])
    assert reward("brier", given)[:2] == pytest.approx([-0.25, -0.25])  # sees no difference


def test_brier_full_is_proper_and_brier_is_not() -> None:
    """Three tokens of true chances 1/2, 1/4, 1/4: which forecast of the first pays most."""
    best = {}
    for name in ("brier", "brier_full"):
        worth = {}
        for n in range(1, 20):
            forecast = (n / 20, (1 - n / 20) / 2, (1 - n / 20) / 2)
            squares = torch.full((1, 3, 1), sum(p * p for p in forecast))
            paid = reward(
                name, replace(inputs([[p] for p in forecast], [0.5]), collision_PGH=squares)
            )
            worth[forecast[0]] = sum(q * r for q, r in zip((0.5, 0.25, 0.25), paid, strict=True))
        best[name] = max(worth, key=lambda p: worth[p])
    assert best == {"brier": 0.6, "brier_full": 0.5}


def test_weighted_prob() -> None:
    # Without a thought the tokens cost log 2 and log 8: weights 1/2 and 3/2.
    given = inputs([[1.0, 0.125], [0.5, 0.625], [0.5, 0.125]], [0.5, 0.125])
    assert reward("weighted_prob", given) == pytest.approx([0.125, 0.375, 0])
    assert reward("mean_prob", given) == pytest.approx([0.25, 0.25, 0])  # cannot tell them apart
    certain = inputs([[0.5, 1.0]], [1.0, 1.0])
    assert reward("weighted_prob", certain) == pytest.approx([-0.25])


def test_positive_gain() -> None:
    given = inputs([[0.5, 0.5], [0.25, 0.5], [0.5, 0.125]], [0.25, 0.5])
    assert reward("positive_gain", given) == pytest.approx([math.log(2), 0, 0])
    plain = reward("log_ratio", given)
    assert plain[2] == pytest.approx(-math.log(2))  # which the floor takes away
    assert reward("positive_gain", replace(given, discount=0.25)) == pytest.approx(
        [math.log(2), 0, math.log(2) - 0.25 * math.log(4)]
    )


def test_ppl_steps() -> None:
    """Thoughts that lower the perplexity of two tokens by given percents; one raises it."""
    percents = [-5.0, 0.0, 0.04, 0.06, 0.99, 1.01, 1.99, 2.01, 50.0]
    empty = [0.25, 0.5]
    thoughts = [[p / (1 - percent / 100) for p in empty] for percent in percents]
    given = inputs(thoughts, empty)
    assert reward("ppl_steps", given) == pytest.approx([0, 0, 0, 0.5, 0.5, 0.9, 0.9, 1, 1])
    # Perplexity is of the mean: one token better, the other as much worse, is no improvement.
    assert reward("ppl_steps", inputs([[0.5, 0.25]], empty)) == [0]


def test_ppl_rank() -> None:
    given = inputs([[0.5], [0.25], [0.125], [0.25]], [0.5])
    assert reward("ppl_rank", given) == pytest.approx([1, 0.5, 0, 0.5])
    # A thousand tokens divide the surprise by four: 3 ln 2 / 4 is less than ln 2.
    lengths = torch.tensor([[0, 1, 1000, 1]])
    assert reward("ppl_rank", replace(given, num_tokens_PG=lengths)) == pytest.approx(
        [2 / 3, 1 / 6, 1, 1 / 6]
    )
    assert reward("ppl_rank", inputs([[0.5], [0.5]], [0.5])) == [0.5, 0.5]
    assert reward("ppl_rank", inputs([[0.5]], [0.5])) == [0]


def test_sample_bound() -> None:
    given = inputs([[0.5, 0.5], [0.5, 1.0], [0.25, 1.0]], [0.5, 0.5])
    mean = (0.25 + 0.5 + 0.25) / 3
    expected = [math.log(mean / other) for other in (0.375, 0.25, 0.375)]
    assert reward("sample_bound", given) == pytest.approx(expected)
    assert expected[0] < 0 < expected[1]
    # All alike: none adds anything. One that misses altogether: the least there is.
    assert reward("sample_bound", inputs([[0.5]] * 3, [0.5])) == pytest.approx([0] * 3, abs=EDGE)
    lost = reward("sample_bound", inputs([[1e-30], [0.5], [0.5]], [0.5]))
    assert lost[0] == pytest.approx(-math.log(3 / 2))
    assert reward("sample_bound", inputs([[0.5]], [0.5])) == [0]


def test_sample_bound_has_the_gradient_of_the_bound() -> None:
    """E[Σ_i r_i ∇log π(c_i)] = ∇E[L_G], by enumeration: 3 thoughts, groups of 2.

    The likelihoods do not depend on the policy here, so that the first term is the whole.
    """
    p = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    logits = torch.tensor([0.2, -0.4, 0.3], dtype=torch.float64, requires_grad=True)
    pairs = [(a, b) for a in range(3) for b in range(3)]
    log_pi = torch.log_softmax(logits, 0)
    bound = sum((log_pi[a] + log_pi[b]).exp() * ((p[a] + p[b]) / 2).log() for a, b in pairs)
    (exact,) = torch.autograd.grad(bound, logits)
    surrogate = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        log_pi = torch.log_softmax(logits, 0)
        r = rewards.REGISTRY["sample_bound"](inputs([[float(p[i])] for i in pair], [0.5]))[0]
        chance = log_pi[list(pair)].sum().exp().detach()
        surrogate = surrogate + chance * (r.double() * log_pi[list(pair)]).sum()
    (estimated,) = torch.autograd.grad(surrogate, logits)
    torch.testing.assert_close(estimated, exact, rtol=1e-5, atol=1e-7)
    assert exact.abs().max() > 0.1


def test_net_gain() -> None:
    lengths = torch.tensor([[0, 3, 100]])
    given = inputs(
        [[0.5, 0.5]] * 3, [0.25, 0.5], num_tokens_PG=lengths, token_cost_P=torch.tensor([0.01])
    )
    gain = math.log(2)
    assert reward("net_gain", given) == pytest.approx([gain, gain - 0.03, gain - 1])
    free = replace(given, token_cost_P=torch.zeros(1))
    assert reward("net_gain", free) == reward("log_ratio", free)
    calls = replace(free, num_calls_PG=torch.tensor([[0, 1, 3]]), call_cost_P=torch.tensor([0.2]))
    assert reward("net_gain", calls) == pytest.approx([gain, gain - 0.2, gain - 0.6])
    assert [price(0.03, 90, updates) for updates in (0, 89, 90, 200)] == [0, 0, 0.03, 0.03]
    assert price(0.03, 0, 0) == 0.03


def test_length_triangle() -> None:
    lengths = torch.tensor([[0, 5, 10, 15, 20, 50]])
    given = inputs([[0.5]] * 6, [0.5], num_tokens_PG=lengths, length_budget_P=torch.tensor([10.0]))
    assert reward("length_triangle", given) == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    tight = replace(given, length_budget_P=torch.tensor([1.0]))
    assert reward("length_triangle", tight) == [0] * 6


def test_the_length_budget_shrinks() -> None:
    assert [length_budget(80, 100, n) for n in (0, 99, 100, 200, 10**6)] == [80, 40, 40, 20, 1]
    assert length_budget(80, 0, 10**6) == 80


def test_groups_of_none() -> None:
    """Without thoughts nothing is rewarded, and nothing breaks."""
    given = inputs([[0.5]], [0.5])
    nothing = replace(
        given,
        logp_think_PGH=torch.zeros(0, 0, 1),
        logp_no_think_PH=torch.zeros(0, 1),
        match_PGH=torch.zeros(0, 0, 1, dtype=torch.bool),
        num_tokens_PG=torch.zeros(0, 0),
        closed_PG=torch.zeros(0, 0, dtype=torch.bool),
        noise_PG=torch.zeros(0, 0),
        continuation_ids_PH=torch.zeros(0, 1, dtype=torch.int64),
        length_budget_P=torch.zeros(0),
        verdicts=dict.fromkeys(("self", "gold", "outside", "lost_span"), torch.zeros(0, 0)),
        right_PG=torch.zeros(0, 0),
    )
    for name in rewards.REGISTRY:
        assert rewards.REGISTRY[name](nothing).shape == (0, 0), name
