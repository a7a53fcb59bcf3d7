"""Draw a token a row from its logits, with the token's log-prob.

    sample(logits [N, V], uniforms [N], temperature) -> (ids [N], logprob [N])

Inverse transform sampling, untruncated: the same uniform number gives the same token, whatever the
other rows are. The environment variable RNTP_SAMPLING overrides the choice of implementation:

reference  PyTorch. The CPU, and float64.
triton     Two kernels that read the logits once, and one block of them twice. CUDA.
"""

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from rntp_kernels.choice import has_triton, interpreted, requested
from rntp_kernels.sampling.reference import sample_reference

__all__ = ["Implementation", "sample", "sample_reference"]

Implementation = Literal["auto", "reference", "triton"]
OVERRIDE = "RNTP_SAMPLING"


def sample(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Sample from softmax(logits / temperature).

    logits: [N, V]. uniforms: float64 [N] in [0, 1). Returns ids int64 [N] and their log-probs in
    nats, float32 or better, [N]. A token of probability 0 is never drawn. Nothing is read back to
    the host.

    Raises ValueError for an implementation that does not exist or cannot run here, RuntimeError
    for one that fails its check against the reference.
    """
    name = requested(implementation, OVERRIDE, get_args(Implementation))
    able = has_triton() and logits.dtype != torch.float64
    if name == "auto":
        name = "triton" if able and logits.is_cuda else "reference"
    if name == "reference":
        return sample_reference(logits, uniforms, temperature)
    if not able or not (logits.is_cuda or interpreted()):
        raise ValueError(
            "sampling by 'triton' needs triton, CUDA tensors (or TRITON_INTERPRET=1) and no "
            f"float64; use reference (see {OVERRIDE})"
        )
    from rntp_kernels.sampling.triton_sampling import sample_triton

    if logits.is_cuda:
        self_check(logits.device, logits.dtype)
    return sample_triton(logits, uniforms, temperature)


@cache
def self_check(device: torch.device, dtype: torch.dtype) -> None:
    """Compare the kernels with the reference on a small case, once a process.

    Raises RuntimeError if they draw other tokens or find other log-probs.
    """
    from rntp_kernels.sampling.triton_sampling import sample_triton

    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(64, 5001, generator=generator)).to(device, dtype)
    uniforms = torch.rand(64, generator=generator, dtype=torch.float64).to(device)
    ids, logprob = sample_triton(logits, uniforms, 0.8)
    true_ids, true_logprob = sample_reference(logits.double(), uniforms, 0.8)
    same = ids == true_ids
    gap = float((logprob - true_logprob)[same].abs().max()) if bool(same.any()) else float("inf")
    # A uniform number may lie within rounding of the border between two tokens.
    if int(same.sum()) < len(ids) - 1 or not gap < 1e-4:
        raise RuntimeError(
            f"sampling by 'triton' is wrong on {device} in {dtype}: {int((~same).sum())} of "
            f"{len(ids)} tokens differ, log-probs by {gap:.2g}; set {OVERRIDE}=reference and "
            "report the versions of torch and triton"
        )
