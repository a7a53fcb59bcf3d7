"""Raw logits in float32, whatever the type of the operands.

A product of two bfloat16 numbers is exact in float32, so nothing is lost by multiplying them as
they are; what costs accuracy is a result that is rounded to bfloat16 (0.03 nats rms a token on
SmolLM2-135M). CUDA's products can have a float32 result. The CPU's have their operands' type, so
the operands are widened, and oneDNN is told to multiply float32 numbers as bfloat16 ones: these
are bfloat16 numbers, so that nothing is rounded, and the processor's bfloat16 units do the work.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

# Numbers of the weight that are widened at a time: 64 MB.
_PIECE = 1 << 24
_LOCK = threading.RLock()


def float32_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_float32: Tensor | None = None,
) -> Tensor:
    """Compute hidden [N, H] @ weight.T [H, V] + bias [V] in float32 (float64 for float64): [N, V].

    weight_float32: `weight.float()`, where somebody has it (CPU, many products of few rows).
    Differentiable; where a gradient is wanted the product is a plain float32 one, so
    `linear_logprob` is what to learn with. Raises ValueError for operands of unlike types.
    """
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype}, weight is {weight.dtype}")
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if hidden.dtype not in (torch.bfloat16, torch.float16):
        return hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    if learns or hidden.device.type not in ("cpu", "cuda"):
        logits = hidden.float() @ weight.float().T
    elif hidden.is_cuda:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = _on_cpu(hidden, weight, weight_float32)
    return logits if bias is None else logits.add_(bias)


@contextmanager
def bfloat16_multiplies() -> Iterator[None]:
    """Let oneDNN multiply float32 numbers as bfloat16 ones, and add up in float32.

    Exact where the operands are bfloat16 numbers. The setting belongs to the process: float32
    products that another thread makes meanwhile are rounded. Only one thread at a time is in here,
    so that the setting is always put back.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _LOCK:
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = before


def _on_cpu(hidden: Tensor, weight: Tensor, weight_float32: Tensor | None) -> Tensor:
    """Multiply 16-bit operands; the weight is widened in pieces, unless it is given widened."""
    rows, (vocabulary, width) = hidden.float(), weight.shape
    exact = hidden.dtype == torch.bfloat16  # a float16 number is no bfloat16 one
    with bfloat16_multiplies() if exact else nullcontext():
        if weight_float32 is not None:
            return rows @ weight_float32.T
        step = min(max(_PIECE // max(width, 1), 1), max(vocabulary, 1))
        logits = rows.new_empty(len(rows), vocabulary)
        piece = rows.new_empty(step, width)
        for first in range(0, vocabulary, step):
            own = piece[: vocabulary - first].copy_(weight[first : first + step])
            torch.mm(rows, own.T, out=logits[:, first : first + step])
    return logits
