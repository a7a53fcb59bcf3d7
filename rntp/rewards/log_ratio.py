"""Discounted gain over predicting without a thought (RLP, 2510.01265; there H = 1)."""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("log_ratio", baseline="subtracts")
def log_ratio(inputs: RewardInputs) -> Tensor:
    """r = Σ_k γ^k (log p(x_k | context, thought) − log p(x_k | context)), nats, [P, G]."""
    gain_PGH = inputs.logp_think_PGH - inputs.logp_no_think_PH[:, None]
    return (gain_PGH * inputs.discounts_H).sum(dim=-1)
