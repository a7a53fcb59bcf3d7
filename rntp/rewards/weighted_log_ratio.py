"""Gain over predicting without a thought in which hard tokens count more (NRT, 2602.11549)."""

import torch
from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("weighted_log_ratio", baseline="needs")
def weighted_log_ratio(inputs: RewardInputs) -> Tensor:
    """r = Σ_k γ^k w_k (log p(x_k | context, thought) − log p(x_k | context)), nats, [P, G].

    w_k: see `surprise_weights`.
    """
    assert inputs.has_baseline
    weight_PH = surprise_weights(inputs) * inputs.discounts_H
    gain_PGH = inputs.logp_think_PGH - inputs.logp_no_think_PH[:, None]
    return (gain_PGH * weight_PH[:, None]).sum(dim=-1)


def surprise_weights(inputs: RewardInputs) -> Tensor:
    """w_k = H · s_k / Σ_j s_j with s_k = −log p(x_k | context), which averages 1 over the H tokens;
    where every token was certain, w_k = 1.
    """
    surprise_PH = (-inputs.logp_no_think_PH).clamp_min(0)
    mean_P1 = inputs.mean(surprise_PH)[:, None]
    tiny = torch.finfo(mean_P1.dtype).tiny
    return torch.where(mean_P1 > tiny, surprise_PH / mean_P1.clamp_min(tiny), 1)
