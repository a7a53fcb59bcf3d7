"""Per-token log-probability and entropy of a language-model head, without keeping the logits.

    linear_logprob(hidden [N, H], weight [V, H], targets [N]) -> (logprob [N], entropy [N])

Both outputs are differentiable and float32 (float64 for float64 operands), in nats. The boundary
is deliberate: policy gradients, clipping, KL and entropy terms are plain PyTorch on [N] vectors.
"""

from typing import Literal

import torch
from torch import Tensor

from rntp_kernels.linear_logprob.chunked import ChunkedLinearLogprob
from rntp_kernels.linear_logprob.reference import linear_logprob_reference

Implementation = Literal["auto", "reference", "chunked"]

__all__ = ["linear_logprob", "linear_logprob_reference", "linear_logprob_top1"]


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    chunk_rows: int = 1024,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """See `linear_logprob_top1`, of which this returns the first two."""
    logprob, entropy, _ = linear_logprob_top1(
        hidden,
        weight,
        targets,
        temperature=temperature,
        chunk_rows=chunk_rows,
        implementation=implementation,
    )
    return logprob, entropy


def linear_logprob_top1(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    chunk_rows: int = 1024,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature)[targets], entropy and arg-max, each [N].

    hidden: [N, H]. weight: [V, H], same float type. targets: int64 [N], each in [0, V).
    temperature: one number, or a float tensor [N].
    implementation: `chunked` (what `auto` takes) holds the logits of `chunk_rows` rows at a time
    and computes them again in the backward; `reference` is plain autograd and holds them all.

    The operands' matmul runs at library speed with float32 accumulation; statistics, outputs and
    the accumulation of the weight's gradient over chunks are float32 or better.

    Raises ValueError for shapes or types that do not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"shapes do not fit: hidden {hidden.shape}, weight {weight.shape}")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 [{hidden.shape[0]}], not {targets.shape}")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype}, weight is {weight.dtype}")
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    temperature = torch.as_tensor(temperature, dtype=wide, device=hidden.device)
    inverse = (1.0 / temperature).expand(targets.shape)
    if implementation == "reference":
        return linear_logprob_reference(hidden, weight, targets, inverse)
    return ChunkedLinearLogprob.apply(hidden, weight, targets, inverse, chunk_rows)
