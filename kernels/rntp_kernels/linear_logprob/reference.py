"""The specification: logits in full, plain autograd, any float type."""

import torch
from torch import Tensor


def logits_of(hidden: Tensor, weight: Tensor) -> Tensor:
    """[N, V] in float32, or float64 for float64 operands: the matmul keeps the operands' type."""
    logits = hidden @ weight.T
    return logits if logits.dtype == torch.float64 else logits.float()


def linear_logprob_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, inverse_temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `rntp_kernels.linear_logprob_top1`; inverse_temperature: float [N]."""
    logp = torch.log_softmax(logits_of(hidden, weight) * inverse_temperature[:, None], dim=-1)
    logprob = logp.gather(1, targets[:, None])[:, 0]
    # A probability of exactly 0 has log-prob -inf; its part of the entropy is 0, not NaN.
    entropy = -(logp.exp() * logp.clamp_min(torch.finfo(logp.dtype).min)).sum(dim=-1)
    return logprob, entropy, logp.argmax(dim=-1)
