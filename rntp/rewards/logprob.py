"""Discounted log-likelihood of the continuation (JEPO, 2503.19618; LaTRO, 2411.04282)."""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("logprob")
def logprob(inputs: RewardInputs) -> Tensor:
    """r = Σ_k γ^k log p(x_k | context, thought), nats, [P, G]."""
    return (inputs.logp_think_PGH * inputs.discounts_H).sum(dim=-1)
