"""Inverse transform sampling in PyTorch."""

import torch
from torch import Tensor


def sample_reference(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """See `rntp_kernels.sampling.sample`. The cumulative sum runs in float64, so that no token of a
    large vocabulary loses its share to rounding."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(wide / temperature, dim=-1)
    cumulative = logp.exp().cumsum(dim=-1, dtype=torch.float64)
    wanted = uniforms[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, wanted, right=True).clamp_max(logits.shape[1] - 1)
    return ids[:, 0], logp.gather(1, ids)[:, 0]
