"""Gain over predicting without a thought, and never worse than none (NRT, 2602.11549).

The floor alone: NRT takes it of weighted probabilities, here it is of log-probabilities.

Known failure: where every thought hurts the group is dead, so nothing pulls a bad start up to zero.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.rewards.log_ratio import log_ratio
from rntp.types import RewardInputs


@register("positive_gain", baseline="needs")
def positive_gain(inputs: RewardInputs) -> Tensor:
    """r = max(0, Σ_k γ^k (log p(x_k | context, thought) − log p(x_k | context))), nats, [P, G]."""
    assert inputs.has_baseline
    return log_ratio(inputs).clamp_min(0)
