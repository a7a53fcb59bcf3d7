"""Row kernels of the head, in PyTorch; `triton_rows` has the same in Triton.

Raw logits are hidden @ weight.T. What the softmax sees is `scaled_logits`: soft-capped, divided by
the temperature, with the columns of padding at -inf.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Of a log-prob of −inf: its probability 0 has no part in the entropy, and must not be NaN. A number
# far from overflow, whatever slope multiplies it.
_NEVER = -1e30


@dataclass(frozen=True)
class Shaping:
    """How raw logits become those of the softmax.

    soft_cap: c of c · tanh(z / c), or None. vocabulary: columns from here on are padding, or None.
    ignored: rows with this target have log-prob and entropy 0, and no gradient; or None.
    """

    soft_cap: float | None = None
    vocabulary: int | None = None
    ignored: int | None = None


def scaled_logits(logits: Tensor, inverse_temperature: Tensor, shaping: Shaping) -> Tensor:
    """logits [N, V] in float32 or better, inverse_temperature [N] -> [N, V]. Differentiable."""
    if shaping.soft_cap is not None:
        logits = shaping.soft_cap * torch.tanh(logits / shaping.soft_cap)
    logits = logits * inverse_temperature[:, None]
    if shaping.vocabulary is not None and shaping.vocabulary < logits.shape[1]:
        padding = torch.arange(logits.shape[1], device=logits.device) >= shaping.vocabulary
        logits = logits.masked_fill(padding, float("-inf"))
    return logits


def wide(logits: Tensor) -> Tensor:
    """In float32, or as they are in float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def statistics(
    logits: Tensor, targets: Tensor, inverse_temperature: Tensor, shaping: Shaping
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raw logits [N, V] -> log-prob of the targets, entropy, log-sum-exp (nats) and arg-max, [N].

    Differentiable; targets are in [0, V): ignored rows are the caller's.
    """
    scaled = scaled_logits(wide(logits), inverse_temperature, shaping)
    logp = torch.log_softmax(scaled, dim=-1)
    logprob = logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp.clamp_min(_NEVER)).sum(dim=-1)
    top1 = logp.argmax(dim=-1)
    lse = (scaled.gather(1, top1[:, None]) - logp.gather(1, top1[:, None]))[:, 0]
    return logprob, entropy, lse, top1


def logit_gradient(
    logits: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    entropy: Tensor,
    lse: Tensor,
    g_logprob: Tensor,
    g_entropy: Tensor,
    shaping: Shaping,
) -> Tensor:
    """Gradient at the raw logits, in their type; may overwrite them.

    With z the scaled logits and p = softmax(z):

        dz_j = g_logprob · (1[j = target] − p_j) − g_entropy · p_j · (log p_j + entropy)

    lse: not read here; the Triton kernel starts from it instead of a second pass for the maximum.
    """
    del lse
    raw = wide(logits)
    logp = torch.log_softmax(scaled_logits(raw, inverse_temperature, shaping), dim=-1)
    finite = logp.clamp_min(_NEVER)
    slope = g_logprob[:, None] + g_entropy[:, None] * (finite + entropy[:, None])
    gradient = logp.exp_().mul_(slope).neg_()
    gradient.scatter_add_(1, targets[:, None], g_logprob[:, None])
    gradient = gradient.mul_(inverse_temperature[:, None])
    if shaping.soft_cap is not None:
        gradient = gradient * (1 - torch.tanh(raw / shaping.soft_cap).square())
    return gradient.to(logits.dtype)
