"""Verdicts of judges outside of the run, as rewards and advantages see them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.judges.opening import combined
from rntp.types import Rollout


def outside_verdicts(rollouts: Sequence[Rollout], config: Config) -> dict[str, Tensor]:
    """P(yes) of all judges together, float32 [P, G] under "outside", NaN where one is missing; {}
    where no scheme asks for them."""
    if not asks_judges(config):
        return {}
    together = combined(config)
    groups = [group for r in rollouts for group in r.thoughts]
    values = [[together(t.verdicts) for t in group] for group in groups]
    missing = float("nan")
    return {
        "outside": torch.tensor(
            [[missing if yes is None else yes for yes in group] for group in values]
        ).view(len(groups), -1 if groups else 0)
    }


def asks_judges(config: Config) -> bool:
    """Whether any scheme of a run does, shadows included."""
    return any(rewards.NEEDS[name].outside for name in config.reward.names)


def missing_verdicts(verdicts: Mapping[str, Tensor], config: Config) -> Tensor | None:
    """bool [P, G]: thoughts without a verdict that drives; None where all have theirs."""
    if not any(rewards.NEEDS[name].outside for name in config.reward.weights):
        return None
    missing_PG = verdicts["outside"].isnan()
    return missing_PG if missing_PG.any() else None


def filled(reward_PG: Tensor) -> Tensor:
    """Put the mean of its group in place of a missing reward (NaN), for what measures spreads; 0
    where the whole group is missing."""
    if not reward_PG.isnan().any():
        return reward_PG
    mean_P1 = reward_PG.nanmean(dim=1, keepdim=True).nan_to_num(0.0)
    return torch.where(reward_PG.isnan(), mean_P1, reward_PG)
