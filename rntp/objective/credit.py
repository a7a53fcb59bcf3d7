"""From rewards to what each thought is credited with: advantages, and which groups count."""

from functools import partial
from typing import cast

import torch
from torch import Tensor

from rntp.config import Config
from rntp.objective import baselines
from rntp.objective.advantages import Kind, advantages, dead_groups
from rntp.objective.outside import filled
from rntp.placement.repeats import rows_of_groups


def credit(
    reward_PG: Tensor,
    no_think_logp_PH: Tensor,
    config: Config,
    usual_std: float = 0.0,
    tolerance: float | Tensor = 1e-6,
    missing_PG: Tensor | None = None,
    group_P: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages [P, G], detached, and bool [P]: the groups that count in the policy gradient.

    Groups that do not count have advantage 0, and nothing is compared with them. reward_PG: what
    drives, all penalties taken off. no_think_logp_PH: the baseline, nats. usual_std: of a group's
    rewards, for `objective.drop_groups_below`. tolerance: reward units, what equal rewards may
    differ by, a number or [P]; see `rntp.objective.rounding`. missing_PG: bool, thoughts without a
    reward: they leave their groups, and the others are compared among themselves. group_P: int64,
    the group of each row of thoughts, where some have several. Where
    `objective.needs_whole_step`, the groups must be all those of a step.
    """
    if group_P is not None and len(group_P) and len(group_P) > group_P.max() + 1:
        rest = (no_think_logp_PH, config, usual_std, tolerance, missing_PG)
        return _of_groups(reward_PG, group_P, *rest)
    objective, use = config.objective, config.baseline.use
    counted_P = torch.ones(len(reward_PG), dtype=torch.bool, device=reward_PG.device)
    share = objective.drop_groups_below
    if share is not None:
        compared = baselines.members(reward_PG if missing_PG is None else filled(reward_PG), use)
        # Not `>=`: a reward that is no number has to reach the loss, where it is noticed.
        counted_P = ~(compared.std(dim=1, correction=0) < share * usual_std)
        if share == 0:
            counted_P &= ~dead_groups(compared, tolerance)
    centre = partial(
        advantages,
        kind=cast(Kind, objective.advantage),
        divide_by_std=objective.advantage.get("divide_by_std"),
        std_floor=objective.advantage.get("std_floor"),
    )
    if counted_P.all() and missing_PG is None:
        advantage_PG = baselines.used(reward_PG, no_think_logp_PH, use, centre)
        return _of_drawn(advantage_PG, config), counted_P
    there_PG = counted_P[:, None].expand_as(reward_PG)
    if missing_PG is not None:
        there_PG = there_PG & ~missing_PG.to(there_PG.device)
    advantage_PG = torch.zeros_like(reward_PG)
    size_P = there_PG.sum(dim=1)
    for size in size_P.unique().tolist():  # groups of a size are compared at once
        rows = size_P == size
        if size > 0:
            some = there_PG & rows[:, None]
            reward = reward_PG[some].view(-1, size)
            found = baselines.used(reward, no_think_logp_PH[rows], use, centre)
            advantage_PG[some] = found.flatten()
    return _of_drawn(advantage_PG, config), counted_P


def _of_drawn(advantage_PG: Tensor, config: Config) -> Tensor:
    """With `thought.source: policy_or_none` the first thought of a group was not drawn but closed
    at once. Where that was better than the others it is learnt from, as in self-imitation
    (1806.05635); where it was worse, only from what the policy itself has closed at once, or its
    probability would fall without end."""
    if config.thought.source != "policy_or_none":
        return advantage_PG
    return torch.cat([advantage_PG[:, :1].clamp_min(0), advantage_PG[:, 1:]], dim=1)


def _of_groups(
    reward_PG: Tensor,
    group_P: Tensor,
    no_think_logp_PH: Tensor,
    config: Config,
    usual_std: float,
    tolerance: float | Tensor,
    missing_PG: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Give the same where groups have several rows: all thoughts of a position are compared."""
    advantage_PG = torch.zeros_like(reward_PG)
    counted_P = torch.ones(len(reward_PG), dtype=torch.bool, device=reward_PG.device)
    for rows in rows_of_groups(group_P):
        rows = rows.to(reward_PG.device)
        part, counts = credit(
            reward_PG[rows].flatten(1),
            no_think_logp_PH[rows[:, 0]],
            config,
            usual_std,
            tolerance[rows].amax(dim=1) if isinstance(tolerance, Tensor) else tolerance,
            None if missing_PG is None else missing_PG.to(rows.device)[rows].flatten(1),
        )
        advantage_PG[rows] = part.view(*rows.shape, -1)
        counted_P[rows] = counts[:, None].expand_as(rows)
    return advantage_PG, counted_P
