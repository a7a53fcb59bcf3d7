"""Per-token log-probability and entropy of a language-model head, without keeping the logits.

    linear_logprob(hidden [N, H], weight [V, H], targets [N]) -> (logprob [N], entropy [N])

Both outputs are differentiable and float32 (float64 for float64 operands), in nats, and so are the
logits that they come from. The boundary is deliberate: policy gradients, clipping, KL and entropy
terms are plain PyTorch on [N] vectors.

No implementation uses atomics or filters gradients: equal inputs give equal bits.
"""

import torch
from torch import Tensor

from rntp_kernels.linear_logprob.projection import float32_logits
from rntp_kernels.linear_logprob.reference import linear_logprob_reference
from rntp_kernels.linear_logprob.rows import Shaping
from rntp_kernels.linear_logprob.selection import Implementation, choose, compute

__all__ = [
    "Implementation",
    "Shaping",
    "default_chunk_rows",
    "float32_logits",
    "linear_logprob",
    "linear_logprob_reference",
    "linear_logprob_top1",
]

_PLAIN = Shaping()


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    shaping: Shaping = _PLAIN,
    chunk_rows: int | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute log-prob and entropy: the first two that `linear_logprob_top1` returns."""
    logprob, entropy, _ = linear_logprob_top1(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        shaping=shaping,
        chunk_rows=chunk_rows,
        implementation=implementation,
    )
    return logprob, entropy


def linear_logprob_top1(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    shaping: Shaping = _PLAIN,
    chunk_rows: int | None = None,
    drop_zero_rows: bool | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log softmax(hidden @ weight.T / temperature)[targets], entropy and arg-max, each [N].

    hidden: [N, H]. weight: [V, H], same float type. targets: int64 [N], each in [0, V) and no
    padding. bias: [V], of the same type, added to the products. temperature: one number, or a float
    tensor [N]. shaping: scale and soft cap (before the temperature), padding of the vocabulary.
    chunk_rows: rows whose logits are held at a time; see `default_chunk_rows`.
    drop_zero_rows: the backward leaves out rows whose upstream gradients are both zero (thoughts of
    groups without a difference, scores that only rewards use); gradients are equal to rounding.
    By default on CUDA.
    implementation: see `rntp_kernels.linear_logprob.selection`. All but `reference` hold the logits
    of two chunks at most, and compute those of all chunks but the last again in the backward.

    Matrix products run at library speed on the operands as they are; logits, statistics, outputs
    and the sum of the weight's gradient over chunks are float32 or better. The gradient of the
    logits is rounded to the operands' type before it is multiplied.

    Raises ValueError for shapes or types that do not fit, RuntimeError for a kernel that fails
    its check against the reference on this device.
    """
    inverse = _inverse_temperature(hidden, weight, targets, temperature)
    chosen = choose(hidden, weight, implementation, bias)
    rows = chunk_rows or default_chunk_rows(hidden.device)
    if drop_zero_rows is None:
        drop_zero_rows = hidden.is_cuda
    return compute(chosen, hidden, weight, targets, inverse, shaping, rows, drop_zero_rows, bias)


def _inverse_temperature(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float | Tensor
) -> Tensor:
    """Compute 1/temperature, [N] in the type of the outputs, and check the operands."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"shapes do not fit: hidden {hidden.shape}, weight {weight.shape}")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 [{hidden.shape[0]}], not {targets.shape}")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype}, weight is {weight.dtype}")
    kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    temperature = torch.as_tensor(temperature, dtype=kind, device=hidden.device)
    return (1.0 / temperature).expand(targets.shape)


def default_chunk_rows(device: torch.device) -> int:
    """Say how many rows' logits, 4 bytes each, are held at a time: the weight's gradient is read
    and written once a chunk, which a faster device feels sooner."""
    return 4096 if device.type == "cuda" else 2048
