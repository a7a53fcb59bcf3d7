"""Loss terms as sums over tokens. Pure functions; log-probs in nats, float32 or better.

Each returns a sum. The caller divides by a count taken over the whole step, once, so that the
loss and its gradient do not depend on how the step is cut into microbatches or ranks. M counts
sampled tokens; a weight that is not negative may be multiplied into the advantages beforehand.
"""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def policy_gradient(logp_M: Tensor, advantage_M: Tensor) -> Tensor:
    """−Σ A · log π(token): REINFORCE on the sampled thought tokens, exactly on-policy."""
    return -(advantage_M.detach() * logp_M).sum()


def clipped_ratio(
    logp_M: Tensor, old_logp_M: Tensor, advantage_M: Tensor, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """−Σ min(ρ A, clip(ρ, 1 − low, 1 + high) A), ρ = π / π_old (PPO; clip-higher, 2503.14476).

    Returns the sum and the number of tokens whose gradient the clip cut off.
    """
    advantage_M = advantage_M.detach()
    ratio = (logp_M - old_logp_M.detach()).exp()
    free, clipped = ratio * advantage_M, ratio.clamp(1 - low, 1 + high) * advantage_M
    return -torch.minimum(free, clipped).sum(), (clipped < free).sum()


def clipped_weight(
    logp_M: Tensor, old_logp_M: Tensor, advantage_M: Tensor, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """−Σ sg[clip(ρ, 1 − low, 1 + high)] A · log π, ρ = π / π_old (CISPO, MiniMax-M1, 2506.13585).

    The clip bounds the weight of a token and never takes its gradient away. The paper leaves the
    lower side open. Returns the sum and the number of tokens whose weight was bounded.
    """
    ratio = (logp_M - old_logp_M).detach().exp()
    weight = ratio.clamp(1 - low, 1 + high)
    return policy_gradient(logp_M, weight * advantage_M), (weight != ratio).sum()


def clipped_sequence_ratio(
    logp_M: Tensor,
    old_logp_M: Tensor,
    advantage_M: Tensor,
    *,
    thought_index_M: Tensor,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    """−Σ min(s A, clip(s, 1 − low, 1 + high) A), s = (π(thought) / π_old(thought))^(1 / tokens).

    GSPO (2507.18071): one ratio a thought, the geometric mean of its tokens' ratios, through which
    the gradient flows. Every token carries its thought's term; the paper's mean over thoughts is
    `objective.normalize: thoughts`. thought_index_M: int64, the thought of each token.
    Returns the sum and the number of tokens in thoughts whose gradient the clip cut off.
    """
    log_ratio_M = logp_M - old_logp_M.detach()
    tokens = torch.bincount(thought_index_M)
    total = log_ratio_M.new_zeros(len(tokens)).index_add(0, thought_index_M, log_ratio_M)
    log_s_M = (total / tokens).index_select(0, thought_index_M)
    return clipped_ratio(log_s_M, torch.zeros_like(log_s_M), advantage_M, low=low, high=high)


def negative_log_likelihood(logp: Tensor, weight: Tensor | None = None) -> Tensor:
    """−Σ w log p: continuation and plain next-token terms. weight: broadcast to logp; 1 if None."""
    return -logp.sum() if weight is None else -(weight.detach() * logp).sum()


def kl_per_token(logp_M: Tensor, other_logp_M: Tensor, estimator: Estimator) -> Tensor:
    """Estimates of KL(π ‖ other), nats, [M], from tokens that π sampled; with d = log π − log other

        k1 = d                  unbiased, high variance
        k2 = d² / 2             biased where π and other are far apart
        k3 = exp(−d) − 1 + d    unbiased, never negative

    (Schulman, 2020; k3 is GRPO's, 2402.03300.) As a loss, the gradient is that of the expression,
    and published code disagrees about which to take (2506.09477). In expectation over tokens that
    π samples after a given prefix, ∇k1 is 0 and only adds noise; ∇k2 is ∇KL(π ‖ other); ∇k3 is
    ∇KL(other ‖ π), which is the same to first order where the two are close. That a token changes
    what is sampled after it is in none of them: a penalty in the reward counts that.
    """
    difference_M = logp_M - other_logp_M
    if estimator == "k1":
        return difference_M
    if estimator == "k2":
        return difference_M.square() / 2
    return (-difference_M).exp() - 1 + difference_M


def kl_per_thought(
    logp_M: Tensor,
    other_logp_M: Tensor,
    thought_index_M: Tensor,
    estimator: Estimator,
    *,
    thoughts: int,
) -> Tensor:
    """The same summed over the tokens of each thought, nats, [thoughts].

    With k1 the sum is log π(thought) − log other(thought) (LaTRO, 2411.04282).
    """
    per_token = kl_per_token(logp_M, other_logp_M, estimator)
    return per_token.new_zeros(thoughts).index_add(0, thought_index_M, per_token)


def kl_estimate(logp_M: Tensor, sampler_logp_M: Tensor) -> Tensor:
    """Σ k3 of KL(sampler ‖ policy), nats: never negative."""
    return kl_per_token(sampler_logp_M, logp_M, "k3").sum()
