"""What `baseline.use` makes of the no-think prediction, beyond a scheme's own subtraction.

Pure functions. Subtracted from every member of a group and nothing more, it cancels; each of these
changes the gradient (tests/objective/test_baselines.py).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Use = Literal["subtract", "clip", "group_member", "position_weight", "gate"]


def floored(reward_PG: Tensor, use: Use) -> Tensor:
    """The reward that drives, [P, G]. clip: max(0, r), so that no thought is worse than none."""
    return reward_PG.clamp_min(0) if use == "clip" else reward_PG


def members(reward_PG: Tensor, use: Use) -> Tensor:
    """Rewards of all that a thought is compared with, [P, G], or [P, G + 1] with group_member.

    There the empty thought comes last. A scheme that subtracts gives it r_0 = 0.
    """
    if use != "group_member":
        return reward_PG
    return torch.cat([reward_PG, reward_PG.new_zeros(len(reward_PG), 1)], dim=1)


def used(
    reward_PG: Tensor, logp_no_think_PH: Tensor, use: Use, centre: Callable[[Tensor], Tensor]
) -> Tensor:
    """Advantages [P, G] of rewards, centred in their group by `centre`.

    group_member: the empty thought joins mean and standard deviation without a gradient of its own.
    position_weight: A · (1 − exp(mean_k log p(x_k | context))), the chance of being wrong without a
    thought, in [0, 1]. That is an absolute number, so it does not depend on how the step is cut
    into microbatches.
    gate: A · 1[mean_i r_i > 0], for rewards that give an empty thought 0. The mean of the thoughts
    at hand stands for the expected gain. Blind spot: where thoughts cost more than they give on
    average, the one that helps is not learnt from either, so a policy that cannot think yet stays
    as it is; and a group that did well by luck counts where one that did badly does not.
    """
    advantage_PG = centre(members(reward_PG, use))[:, : reward_PG.shape[1]]
    if use == "gate":
        return advantage_PG * (reward_PG.mean(dim=1, keepdim=True) > 0)
    if use != "position_weight":
        return advantage_PG
    return advantage_PG * -torch.expm1(logp_no_think_PH.mean(dim=1, keepdim=True))
