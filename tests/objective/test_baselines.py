"""What each use of a baseline makes of advantages: closed forms, and what it is blind to."""

import math
from functools import partial

import pytest
import torch

from rntp import rewards
from rntp.objective.advantages import advantages, dead_groups
from rntp.objective.baselines import floored, members, used
from rntp.types import RewardInputs

LOO = partial(advantages, kind="leave_one_out")
MEAN = partial(advantages, kind="group_mean")
STD = partial(advantages, kind="group_mean", divide_by_std=True, std_floor=1e-9)
REWARD = torch.tensor([[1.0, 2.0, 6.0]])
EMPTY = torch.tensor([[0.25, 0.5]]).log()


def test_the_empty_thought_as_a_member() -> None:
    member = partial(used, REWARD, EMPTY, "group_member")
    torch.testing.assert_close(member(MEAN), REWARD - 9 / 4)
    others = torch.tensor([[8 / 3, 7 / 3, 3 / 3]])  # of two thoughts and the empty one
    torch.testing.assert_close(member(LOO), REWARD - others)
    std = math.sqrt((1 + 4 + 36) / 4 - (9 / 4) ** 2)
    torch.testing.assert_close(member(STD), (REWARD - 9 / 4) / std)
    # All thoughts alike: nothing to choose between them, but thinking as such paid.
    alike = torch.full((1, 3), 2.0)
    torch.testing.assert_close(used(alike, EMPTY, "group_member", MEAN), alike / 4)
    assert dead_groups(members(alike, "group_member")).tolist() == [False]
    assert dead_groups(members(alike, "subtract")).tolist() == [True]


def test_the_chance_of_being_wrong_as_a_weight() -> None:
    weight = 1 - math.sqrt(0.25 * 0.5)
    torch.testing.assert_close(used(REWARD, EMPTY, "position_weight", LOO), LOO(REWARD) * weight)
    certain, hopeless = torch.zeros(1, 2), torch.full((1, 2), -1e9)
    assert used(REWARD, certain, "position_weight", LOO).abs().max() == 0
    assert torch.equal(used(REWARD, hopeless, "position_weight", LOO), LOO(REWARD))


def test_clip_floors_the_reward_and_nothing_else_does() -> None:
    reward = torch.tensor([[-1.0, 0.5]])
    assert floored(reward, "clip").tolist() == [[0, 0.5]]
    for use in ("subtract", "group_member", "position_weight", "gate"):
        assert floored(reward, use) is reward


def rewarded(scheme: str, logp_no_think_PH: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    think = -torch.rand(5, 3, 2, generator=generator, dtype=torch.float64) * 3
    return rewards.REGISTRY[scheme](
        RewardInputs(
            logp_think_PGH=think,
            logp_no_think_PH=logp_no_think_PH,
            has_baseline=True,
            match_PGH=think > -1,
            num_tokens_PG=torch.ones(5, 3),
            closed_PG=think[:, :, 0] > -2,
            continuation_ids_PH=torch.zeros(5, 2, dtype=torch.int64),
            thought_ids=[],
            noise_PG=torch.zeros(5, 3),
            discount=0.9,
        )
    )


@pytest.mark.parametrize("centre", [LOO, MEAN, STD])
@pytest.mark.parametrize("noise", ["constant", "per position"])
@pytest.mark.parametrize(
    ("scheme", "use", "changes"),
    [
        *[(scheme, "subtract", False) for scheme in ("log_ratio", "mean_prob", "logprob")],
        ("weighted_log_ratio", "subtract", True),  # the weights are the baseline's, too
        *[
            (scheme, use, True)
            for scheme in ("log_ratio", "mean_prob", "weighted_log_ratio")
            for use in ("clip", "group_member", "position_weight", "gate")
        ],
        ("logprob", "position_weight", True),
    ],
)
def test_a_disturbed_baseline(scheme: str, use: str, changes: bool, noise: str, centre) -> None:
    generator = torch.Generator().manual_seed(1)
    empty = -1.0 - torch.rand(5, 2, generator=generator, dtype=torch.float64)
    shift = torch.rand(5, 1, generator=generator, dtype=torch.float64) - 0.5
    disturbed = empty + (0.4 if noise == "constant" else shift)
    before, after = (
        used(floored(rewarded(scheme, b), use), b, use, centre) for b in (empty, disturbed)
    )
    gap = float((after - before).norm() / before.norm())
    assert gap > 1e-2 if changes else gap < 1e-12, gap


def test_the_gate_shuts_groups_that_do_not_pay() -> None:
    reward = torch.tensor([[1.0, 2.0, 6.0], [-5.0, 1.0, 4.0], [-3.0, -3.0, 8.0]])
    gated = used(reward, EMPTY.expand(3, 2), "gate", LOO)
    assert torch.equal(gated[0], LOO(reward)[0])
    assert gated[1].tolist() == [0, 0, 0]  # its mean is exactly 0
    assert torch.equal(gated[2], LOO(reward)[2])
    # Blind spot: the one thought that helps is not learnt from.
    assert used(reward - 3, EMPTY.expand(3, 2), "gate", LOO)[1].abs().max() == 0
