"""How much each thought and each token counts, and what a sum over them is divided by.

Pure functions of detached tensors. M counts sampled tokens, P positions, G thoughts of a group, H
continuation tokens.
"""

from typing import Literal

import torch
from torch import Tensor

Normalize = Literal["tokens", "thoughts", "budget"]
ContinuationUse = Literal["uniform", "reward", "positive", "posterior"]


def token_weights(kind: Normalize, thought_index_M: Tensor, dtype: torch.dtype) -> Tensor:
    """[M]: 1, or with `thoughts` one over the number of sampled tokens of the thought.

    thought_index_M: int64, the thought of each token.
    """
    if kind != "thoughts":
        return torch.ones(thought_index_M.shape, dtype=dtype, device=thought_index_M.device)
    return torch.bincount(thought_index_M)[thought_index_M].to(dtype).reciprocal()


def denominator(kind: Normalize, *, tokens: int, thoughts: int, budget: int) -> int:
    """Return what the weighted sum over a step's sampled tokens is divided by.

    tokens: every token alike (DAPO, 2503.14476). thoughts: the mean of each thought, then over
    thoughts (GRPO, 2402.03300; the 1 / len(c) of RLP, 2510.01265), which favours short thoughts
    that do well and long ones that do badly. budget: sampled tokens that the thoughts might have
    had (Dr.GRPO, 2503.20783). Without thoughts the sum is empty, and it is divided by 1.
    """
    return max({"tokens": tokens, "thoughts": thoughts, "budget": thoughts * budget}[kind], 1)


def ratio_of_sampler(
    logp_M: Tensor, sampler_logp_M: Tensor, of: Literal["token", "thought"], thought_index_M: Tensor
) -> Tensor:
    """π / π_sampler, detached [M]: of each token, or the geometric mean over its thought's tokens
    (the ratio of GSPO, 2507.18071)."""
    log_ratio_M = (logp_M - sampler_logp_M).detach()
    if of == "token":
        return log_ratio_M.exp()
    tokens = torch.bincount(thought_index_M)
    total = log_ratio_M.new_zeros(len(tokens)).index_add(0, thought_index_M, log_ratio_M)
    return (total / tokens.clamp_min(1)).exp().index_select(0, thought_index_M)


def correction_weights(ratio_M: Tensor, cap: float, mask: tuple[float, float]) -> Tensor:
    """Weigh tokens that another policy drew, detached [M]: min(ρ, cap), and 0 outside the mask.

    cap: 0 is 1 for all. mask: (0, 0) keeps all; a band around 1 (IcePop: 0.5 … 5) drops tokens that
    policy and sampler judge so differently that one of them has moved on, or errs.
    """
    weight_M = ratio_M.clamp_max(cap) if cap > 0 else torch.ones_like(ratio_M)
    return weight_M * kept(ratio_M, mask) if mask != (0.0, 0.0) else weight_M


def kept(ratio_M: Tensor, mask: tuple[float, float]) -> Tensor:
    """bool [M]: the tokens inside a mask."""
    if mask == (0.0, 0.0):
        return torch.ones_like(ratio_M, dtype=torch.bool)
    low, high = mask
    return (low <= ratio_M) & (ratio_M <= high)


def continuation_weights(
    use: ContinuationUse, reward_PG: Tensor, advantage_PG: Tensor, logp_think_PGH: Tensor
) -> Tensor | None:
    """Weight of each thought's continuation NLL, detached [P, G]; None is 1 for all of them.

    reward: max(0, r), so a probability as reward gives VeriFree's term (2505.21493); a negative
    weight would push text away without bound. positive: 1 where the advantage is above 0 (CoVRL,
    2512.12576). posterior: G · p_i / Σ_j p_j with p_i the probability of the continuation, the
    gradient of the bound of G samples (JEPO, 2503.19618); 1 for all where thoughts are alike.
    """
    if use == "uniform":
        return None
    if use == "reward":
        reward_PG = reward_PG.detach().clamp_min(0)
        return torch.where(reward_PG.isnan(), 0, reward_PG)  # of a missing verdict
    if use == "positive":
        return (advantage_PG > 0).to(logp_think_PGH.dtype)
    group = logp_think_PGH.shape[1]
    return group * torch.softmax(logp_think_PGH.detach().sum(dim=2), dim=1)
