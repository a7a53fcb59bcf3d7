"""The specification: logits in full, plain autograd, any float type."""

import torch
from torch import Tensor

from rntp_kernels.linear_logprob.rows import NEVER, Shaping, scaled_logits, to_float32

_PLAIN = Shaping()


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    shaping: Shaping = _PLAIN,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what `rntp_kernels.linear_logprob_top1` does; inverse_temperature: float [N]."""
    raw = to_float32(hidden) @ to_float32(weight).T
    if bias is not None:
        raw = raw + to_float32(bias)
    logits = scaled_logits(shaping.scale * raw, inverse_temperature, shaping)
    logp = torch.log_softmax(logits, dim=-1)
    logprob = logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp.clamp_min(NEVER)).sum(dim=-1)
    return logprob, entropy, logp.argmax(dim=-1)
