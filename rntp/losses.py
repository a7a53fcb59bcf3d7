"""Loss terms as sums over tokens. Pure functions; log-probs in nats, float32 or better.

Each returns a sum. The caller divides by a count taken over the whole step, once, so that the
loss and its gradient do not depend on how the step is cut into microbatches or ranks.
"""

import torch
from torch import Tensor


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


def negative_log_likelihood(logp: Tensor) -> Tensor:
    """−Σ log p: continuation and plain next-token terms."""
    return -logp.sum()


def kl_estimate(logp_M: Tensor, sampler_logp_M: Tensor) -> Tensor:
    """Σ (ρ − 1 − log ρ), ρ = π / π_sampler: low-variance KL(sampler ‖ policy), never negative."""
    log_ratio = logp_M - sampler_logp_M
    return (log_ratio.exp() - 1 - log_ratio).sum()
