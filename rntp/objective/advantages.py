"""From rewards to advantages, within each group or over all of them. Pure functions.

Rewards are [P, G], in reward units.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def group_mean(reward_PG: Tensor) -> Tensor:
    """A_i = r_i − mean_j r_j (Dr.GRPO, 2503.20783: no division by the standard deviation)."""
    return reward_PG - reward_PG.mean(dim=1, keepdim=True)


def leave_one_out(reward_PG: Tensor) -> Tensor:
    """A_i = r_i − mean_{j≠i} r_j = G/(G−1) · (r_i − mean_j r_j) (RLOO, 2402.14740).

    A group of one has no other members: its advantage is 0.
    """
    size = reward_PG.shape[1]
    return group_mean(reward_PG) * (size / (size - 1) if size > 1 else 0.0)


def as_it_is(reward_PG: Tensor) -> Tensor:
    """A_i = r_i: plain REINFORCE, or a reward that its scheme has centred already."""
    return reward_PG


def over_all(reward_PG: Tensor) -> Tensor:
    """A_i = r_i − mean over all thoughts given (REINFORCE++, 2501.03262)."""
    return reward_PG - reward_PG.mean()


Kind = Literal["group_mean", "leave_one_out", "none", "step"]
CENTRED: dict[Kind, Callable[[Tensor], Tensor]] = {
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "none": as_it_is,
    "step": over_all,
}


def advantages(
    reward_PG: Tensor, kind: Kind, *, divide_by_std: bool = False, std_floor: float = 0.05
) -> Tensor:
    """Detached advantages [P, G].

    With divide_by_std over max(standard deviation of the group, std_floor) (GRPO). step takes mean
    and standard deviation over everything given, which must be all groups of the step, and always
    divides.
    """
    reward_PG = reward_PG.detach()
    centred = CENTRED[kind](reward_PG)
    if kind == "step":
        return centred / reward_PG.std(correction=0).clamp_min(std_floor)
    if not divide_by_std:
        return centred
    std = reward_PG.std(dim=1, keepdim=True, correction=0)
    return centred / std.clamp_min(std_floor)


def dead_groups(reward_PG: Tensor, tolerance: float | Tensor = 1e-6) -> Tensor:
    """Find the groups, bool [P], whose thoughts all earn the same: nothing is to be learnt there.

    tolerance: reward units, a number or [P]: what equal rewards may differ by; see
    `rntp.objective.rounding`.
    """
    spread_P = (reward_PG.amax(dim=1) - reward_PG.amin(dim=1)).abs()
    return spread_P <= torch.as_tensor(tolerance, dtype=spread_P.dtype, device=spread_P.device)
