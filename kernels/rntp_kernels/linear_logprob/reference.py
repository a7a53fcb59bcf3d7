"""The specification: logits in full, plain autograd, any float type."""

import torch
from torch import Tensor

from rntp_kernels.linear_logprob.rows import NEVER, Shaping, scaled_logits, wide

_PLAIN = Shaping()


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    shaping: Shaping = _PLAIN,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `rntp_kernels.linear_logprob_top1`; inverse_temperature: float [N]."""
    kept = None if shaping.ignored is None else targets != shaping.ignored
    if kept is not None:
        targets = targets.where(kept, 0)
    raw = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    logits = scaled_logits(shaping.scale * wide(raw), inverse_temperature, shaping)
    logp = torch.log_softmax(logits, dim=-1)
    logprob = logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp.clamp_min(NEVER)).sum(dim=-1)
    if kept is not None:
        logprob, entropy = logprob.where(kept, 0.0), entropy.where(kept, 0.0)
    return logprob, entropy, logp.argmax(dim=-1)
