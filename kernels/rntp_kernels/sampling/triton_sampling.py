"""Inverse transform sampling in Triton, in two levels: which block of the vocabulary, which token.

The first kernel sums every block; the second adds up the blocks of a row in float64, finds the one
that holds the wanted share, and the token in it. The log-prob comes out of the same numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
_WARPS = 4


@triton.jit
def block_kernel(
    logits_ptr, highest_ptr, total_ptr, stride, vocabulary, parts, inverse, BLOCK: tl.constexpr
):
    """Compute maximum m and Σ exp(z − m) of a block of a row."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    columns = part * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    x = tl.load(logits_ptr + row * stride + columns, mask=inside, other=float("-inf"))
    z = x.to(tl.float32) * inverse
    highest = tl.max(z, axis=0)
    level = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(highest_ptr + row * parts + part, highest)
    tl.store(total_ptr + row * parts + part, tl.sum(tl.exp(z - level), axis=0))


@triton.jit
def token_kernel(
    logits_ptr,
    uniform_ptr,
    highest_ptr,
    total_ptr,
    token_ptr,
    logprob_ptr,
    stride,
    vocabulary,
    parts,
    inverse,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    real = part < parts
    tops = tl.load(highest_ptr + row * parts + part, mask=real, other=float("-inf"))
    sums = tl.load(total_ptr + row * parts + part, mask=real, other=0.0)
    highest = tl.max(tops, axis=0)
    shares = (sums * tl.exp(tops - highest)).to(tl.float64)
    total = tl.sum(shares, axis=0)
    wanted = tl.load(uniform_ptr + row) * total
    # Rounding may leave nobody: then it is the last one with a share.
    before = tl.sum((real & (tl.cumsum(shares, axis=0) <= wanted)).to(tl.int32), axis=0)
    chosen = tl.minimum(before, tl.max(tl.where(shares > 0, part, 0), axis=0))
    wanted -= tl.sum(tl.where(part < chosen, shares, 0.0), axis=0)

    own = tl.arange(0, BLOCK)
    columns = chosen * BLOCK + own
    inside = columns < vocabulary
    x = tl.load(logits_ptr + row * stride + columns, mask=inside, other=float("-inf"))
    z = x.to(tl.float32) * inverse
    p = tl.exp(z - highest).to(tl.float64)
    ahead = tl.sum((inside & (tl.cumsum(p, axis=0) <= wanted)).to(tl.int32), axis=0)
    place = tl.minimum(ahead, tl.max(tl.where(p > 0, own, 0), axis=0))
    drawn = tl.sum(tl.where(own == place, z, 0.0), axis=0)
    tl.store(token_ptr + row, (chosen * BLOCK + place).to(tl.int64))
    tl.store(logprob_ptr + row, drawn - highest - tl.log(total.to(tl.float32)))


def sample_triton(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sample as `rntp_kernels.sampling.sample` says, from logits of 16 or 32 bits."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, BLOCK)
    highest, total = torch.empty(2, rows, parts, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprob = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        inverse = 1.0 / temperature
        size = logits.stride(0), vocabulary, parts, inverse
        block_kernel[(rows, parts)](logits, highest, total, *size, BLOCK=BLOCK, num_warps=_WARPS)
        token_kernel[(rows,)](
            logits,
            uniforms.contiguous(),
            highest,
            total,
            ids,
            logprob,
            *size,
            BLOCK=BLOCK,
            PARTS=triton.next_power_of_2(parts),
            num_warps=_WARPS,
        )
    return ids, logprob
