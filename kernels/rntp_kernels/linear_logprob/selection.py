"""Which implementation computes the head, and whether it can be trusted on this device.

reference       All logits, plain autograd. For tests.
chunked         Chunks of rows, row kernels in PyTorch. The CPU, and float64.
chunked-triton  Chunks of rows, row kernels in Triton. CUDA.
triton          Scores by one kernel without logits; the backward is that of chunked-triton.
                CUDA, for scores without gradients of narrow models (H ≤ 768) without a bias.

The environment variable RNTP_LINEAR_LOGPROB overrides `auto`.
"""

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from rntp_kernels.choice import has_triton, interpreted, requested, require_agreement
from rntp_kernels.linear_logprob.chunked import ChunkedLinearLogprob, KernelConfig
from rntp_kernels.linear_logprob.reference import linear_logprob_reference
from rntp_kernels.linear_logprob.rows import Shaping

Implementation = Literal["auto", "reference", "chunked", "chunked-triton", "triton"]
OVERRIDE = "RNTP_LINEAR_LOGPROB"

# Above this width the library's matmul with logits in memory is faster than the fused kernel:
# ten bytes of traffic a logit cost as much as 2·919 FLOP on an H200.
_FUSED_WIDTH = 768


def choose(
    hidden: Tensor, weight: Tensor, asked: Implementation, bias: Tensor | None = None
) -> Implementation:
    """Pick an implementation other than `auto`.

    Raises ValueError for one that does not exist or cannot run here, RuntimeError for one that
    fails its check.
    """
    name: Implementation = requested(asked, OVERRIDE, get_args(Implementation))  # type: ignore[assignment]
    if name == "auto":
        name = _fastest(hidden, weight, bias)
    elif name == "triton" and bias is not None:
        raise ValueError("implementation 'triton' has no bias; use chunked-triton")
    elif "triton" in name:
        _require_triton(hidden, name)
    if "triton" in name and hidden.is_cuda:
        self_check(name, hidden.device, hidden.dtype)
    return name


def kernel_config(
    name: Implementation, chunk_rows: int, drop_zero_rows: bool = False
) -> KernelConfig:
    """Name the kernels that an implementation in chunks works with."""
    if "triton" not in name:
        return KernelConfig(chunk_rows, drop_zero_rows=drop_zero_rows)
    from rntp_kernels.linear_logprob import triton_forward, triton_rows

    scores = triton_forward.forward if name == "triton" else None
    return KernelConfig(chunk_rows, triton_rows, scores, drop_zero_rows)


def compute(
    name: Implementation,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    shaping: Shaping,
    chunk_rows: int,
    drop_zero_rows: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log-prob, entropy and arg-max by one implementation."""
    if name == "reference":
        return linear_logprob_reference(hidden, weight, targets, inverse_temperature, shaping, bias)
    config = kernel_config(name, chunk_rows, drop_zero_rows)
    shaping, inverse_temperature = shaping.without_scale(inverse_temperature)
    return ChunkedLinearLogprob.apply(
        hidden, weight, bias, targets, inverse_temperature, shaping, config
    )


@cache
def self_check(name: Implementation, device: torch.device, dtype: torch.dtype) -> None:
    """Compare an implementation with the reference on a small case, once a process.

    Raises RuntimeError if they differ.
    """
    generator = torch.Generator().manual_seed(0)
    rows, width, vocabulary = 37, 96, 1500  # none fits a tile

    def outcome(chosen: Implementation, kind: torch.dtype) -> list[Tensor]:
        generator.manual_seed(0)
        hidden = torch.randn(rows, width, generator=generator).to(device, dtype).to(kind)
        weight = torch.randn(vocabulary, width, generator=generator).to(device, dtype).to(kind)
        targets = torch.randint(vocabulary - 9, (rows,), generator=generator).to(device)
        signs = torch.randn(rows, generator=generator).to(device)
        leaves = (hidden * 0.3).requires_grad_(), weight.requires_grad_()
        inverse = torch.full((rows,), 1.25, device=device, dtype=signs.dtype)
        shaping = Shaping(vocabulary=vocabulary - 9)
        with torch.enable_grad():  # who asks first may be sampling
            logprob, entropy, _ = compute(chosen, *leaves, targets, inverse, shaping, 16)
            grads = torch.autograd.grad((signs * logprob + 0.3 * entropy).sum(), leaves)
        return [x.detach().double() for x in (logprob, entropy, *grads)]

    require_agreement(
        f"linear_logprob {name!r} on {device} in {dtype}",
        ("log-prob", "entropy", "gradient of hidden", "gradient of weight"),
        outcome(name, dtype),
        outcome("reference", dtype),
        outcome("reference", torch.float64),
        f"set {OVERRIDE}=chunked",
    )


def _fastest(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Implementation:
    if not hidden.is_cuda or hidden.dtype == torch.float64 or not has_triton():
        return "chunked"
    requires_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if not requires_grad and hidden.shape[1] <= _FUSED_WIDTH and bias is None:
        return "triton"
    return "chunked-triton"


def _require_triton(hidden: Tensor, wanted: str) -> None:
    if not has_triton():
        raise ValueError(f"implementation {wanted!r} needs triton: pip install triton")
    if hidden.dtype == torch.float64:
        raise ValueError(f"implementation {wanted!r} has no float64; use chunked")
    if not hidden.is_cuda and not interpreted():
        raise ValueError(f"implementation {wanted!r} needs CUDA tensors (or TRITON_INTERPRET=1)")
