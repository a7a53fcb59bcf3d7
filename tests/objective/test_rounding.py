"""What rounding alone makes of equal rewards, and the error of a mean over pages."""

import math

import pytest
import torch

from rntp import rewards
from rntp.objective.advantages import dead_groups
from rntp.objective.rounding import LEAST, RANGE, Rounding, sensitivity, tolerance
from rntp.training.step_metrics import standard_error
from rntp.types import RewardInputs


def inputs(discount: float = 1.0, group: int = 4, horizon: int = 3) -> RewardInputs:
    torch.manual_seed(0)
    think = -torch.rand(2, group, horizon)
    return RewardInputs(
        logp_think_PGH=think,
        logp_no_think_PH=-torch.rand(2, horizon),
        has_baseline=True,
        match_PGH=think > -0.5,
        num_tokens_PG=torch.ones(2, group, dtype=torch.int64),
        closed_PG=torch.ones(2, group, dtype=torch.bool),
        continuation_ids_PH=torch.zeros(2, horizon, dtype=torch.int64),
        thought_ids=[[torch.zeros(1, dtype=torch.int64)] * group] * 2,
        noise_PG=torch.zeros(2, group, dtype=torch.float64),
        discount=discount,
    )


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_a_sum_of_logprobs_adds_up_their_rounding(discount: float) -> None:
    found = sensitivity(inputs(discount, group=512), rewards.REGISTRY["log_ratio"])
    expected = math.sqrt(sum(discount ** (2 * k) for k in range(3)))
    assert found.tolist() == pytest.approx([expected] * 2, rel=0.05)


def test_a_probability_is_rounded_by_its_share_and_a_match_not_at_all() -> None:
    given = inputs(group=1, horizon=1)
    probability = given.logp_think_PGH.exp()[:, 0, 0]
    found = sensitivity(given, rewards.REGISTRY["mean_prob"])
    torch.testing.assert_close(found, probability.double(), rtol=1e-4, atol=0)
    assert sensitivity(inputs(), rewards.REGISTRY["exact_prefix"]).tolist() == [0, 0]


def test_rounding_is_the_root_mean_square_of_the_step() -> None:
    trainer, sampler = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 3.0])
    parts = [Rounding.between(trainer[:1], sampler[:1]), Rounding.between(trainer[1:], sampler[1:])]
    assert Rounding.total(parts).nats == pytest.approx(0.5 / math.sqrt(3))
    assert Rounding.total([]).nats == 0


def test_equal_thoughts_are_dead_in_bfloat16_and_others_are_not() -> None:
    """0.03 nats a log-prob, 16 of them: equal rewards lie some 0.3 nats apart."""
    horizon, nats = 16, 0.03
    rounding = Rounding(nats**2 * 1000, 1000)
    torch.manual_seed(1)
    equal_PG = -20 + nats * torch.randn(1000, 8, horizon).sum(2)
    sensitivity_P = torch.full((1000,), math.sqrt(horizon), dtype=torch.float64)
    bound = tolerance(sensitivity_P, rounding)
    assert float(bound[0]) == pytest.approx(RANGE * 0.12)
    assert dead_groups(equal_PG, bound).float().mean() > 0.85
    assert dead_groups(equal_PG).sum() == 0  # the bound that was there before saw signal in all
    assert dead_groups(equal_PG + torch.arange(8) * 0.2, bound).sum() == 0
    # In float32 the same rewards differ, and where nothing was sampled only ties are ties.
    assert dead_groups(equal_PG, tolerance(sensitivity_P, Rounding(1e-12, 1))).sum() == 0
    assert tolerance(sensitivity_P, Rounding(0, 0)).tolist() == [LEAST] * 1000


def test_the_standard_error_counts_pages() -> None:
    """Over 400 made-up steps the error is what is claimed; counting thoughts, it is too small."""
    torch.manual_seed(2)
    means, claimed, naive = [], [], []
    for _ in range(400):
        page = torch.randn(20, 1, 1) * 1.0
        reward = (page + 0.3 * torch.randn(20, 4, 8)).view(80, 8)
        means.append(float(reward.mean()))
        claimed.append(float(standard_error(reward, [4] * 20)))
        naive.append(float(reward.std() / reward.numel() ** 0.5))
    true = float(torch.tensor(means).std())
    assert sum(claimed) / 400 == pytest.approx(true, rel=0.1)
    assert sum(naive) / 400 < true / 5


def test_the_standard_error_of_one_thought_a_page_is_the_usual_one() -> None:
    reward = torch.tensor([[1.0], [2.0], [4.0]])
    assert float(standard_error(reward, [1, 1, 1])) == pytest.approx(
        float(reward.std()) / math.sqrt(3)
    )
    uneven = torch.tensor([[0.0], [0.0], [3.0]])
    assert float(standard_error(uneven, [2, 1])) == pytest.approx(math.sqrt(2 * (4 + 4)) / 3)
