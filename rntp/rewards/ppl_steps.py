"""Improvement of the continuation's perplexity, in steps (VR-CLI, 2503.22828).

There the scorer is a frozen copy of the policy; here it is the policy, and `baseline.weights` says
whose prediction without a thought is beaten. Known failure: the thresholds are of chapters of
books, and elsewhere most groups may lie on one step.
"""

import torch
from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs

# Improvement in percent, and what it earns.
STEPS = ((0.05, 0.5), (1.0, 0.9), (2.0, 1.0))


@register("ppl_steps", baseline="needs")
def ppl_steps(inputs: RewardInputs) -> Tensor:
    """r of I = 100 · (1 − PPL(x | context, thought) / PPL(x | context)), [P, G]:

    1 for I ≥ 2, 0.9 for I ≥ 1, 0.5 for I ≥ 0.05, else 0. PPL = exp(−mean_k log p). Not discounted.
    """
    assert inputs.has_baseline
    gain_PG = inputs.mean(inputs.logp_think_PGH - inputs.logp_no_think_PH[:, None])
    improvement_PG = -100 * torch.expm1(-gain_PG)
    reward_PG = torch.zeros_like(improvement_PG)
    for threshold, earned in STEPS:
        reward_PG = torch.where(improvement_PG >= threshold, earned, reward_PG)
    return reward_PG
