"""Row kernels of `rows` in Triton: one pass for the statistics, one in place for the gradient.

float32 arithmetic on float32 logits; no atomics, so results do not depend on timing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rntp_kernels.linear_logprob.rows import Shaping

_BLOCK = 4096
_WARPS = 8


@triton.jit
def scaled(x, inverse, soft_cap, CAPPED: tl.constexpr):
    """Shape raw logits for the softmax, in float32."""
    x = x.to(tl.float32)
    if CAPPED:
        x = soft_cap * (2.0 / (1.0 + tl.exp(-2.0 * x / soft_cap)) - 1.0)
    return x * inverse


@triton.jit
def online(z, highest, total, weighted, best, chosen, first):
    """Add logits z [R, C], whose first column is `first`, to the running statistics [R].

    highest: maximum m; total: Σ exp(z − m); weighted: Σ exp(z − m) · (z − m), so that the entropy
    is no difference of large numbers; best, chosen: arg-max. Columns of −inf count for nothing.
    """
    top = tl.max(z, axis=1)
    risen = tl.maximum(highest, top)
    # Finite stand-ins: −inf − −inf and 0 · inf would be NaN.
    level = tl.where(risen == float("-inf"), 0.0, risen)
    drop = tl.where(highest == float("-inf"), 0.0, highest - level)
    below = z - level[:, None]
    power = tl.exp(below)
    product = power * tl.where(power > 0, below, 0.0)
    weighted = tl.exp(drop) * (weighted + total * drop) + tl.sum(product, axis=1)
    total = total * tl.exp(drop) + tl.sum(power, axis=1)
    where = first + tl.argmax(z, axis=1, tie_break_left=True)
    chosen = tl.where(top > best, where, chosen)
    return risen, total, weighted, tl.maximum(best, top), chosen


@triton.jit
def statistics_kernel(
    logits_ptr,
    target_ptr,
    inverse_ptr,
    logprob_ptr,
    entropy_ptr,
    lse_ptr,
    top1_ptr,
    stride,
    vocabulary,
    soft_cap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # rows × vocabulary passes 2^31
    inverse = tl.load(inverse_ptr + row)
    start = logits_ptr + row * stride
    highest = tl.full([1], float("-inf"), tl.float32)
    best = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    weighted = tl.zeros([1], tl.float32)
    chosen = tl.zeros([1], tl.int32)
    for first in range(0, vocabulary, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x = tl.load(start + columns, mask=inside, other=0.0)
        z = tl.where(inside, scaled(x, inverse, soft_cap, CAPPED), float("-inf"))
        highest, total, weighted, best, chosen = online(
            z[None, :], highest, total, weighted, best, chosen, first
        )
    own = scaled(tl.load(start + tl.load(target_ptr + row)), inverse, soft_cap, CAPPED)
    lse = highest + tl.log(total)
    one = tl.arange(0, 1)
    tl.store(logprob_ptr + row + one, own - lse)
    tl.store(entropy_ptr + row + one, tl.log(total) - weighted / total)
    tl.store(lse_ptr + row + one, lse)
    tl.store(top1_ptr + row + one, chosen.to(tl.int64))


@triton.jit
def gradient_kernel(
    logits_ptr,
    gradient_ptr,
    target_ptr,
    inverse_ptr,
    entropy_ptr,
    lse_ptr,
    g_logprob_ptr,
    g_entropy_ptr,
    stride,
    vocabulary,
    columns_of_all,
    soft_cap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    place = row * stride + columns
    inverse = tl.load(inverse_ptr + row)
    g_logprob = tl.load(g_logprob_ptr + row)
    g_entropy = tl.load(g_entropy_ptr + row)
    x = tl.load(logits_ptr + place, mask=inside, other=0.0).to(tl.float32)
    logp = scaled(x, inverse, soft_cap, CAPPED) - tl.load(lse_ptr + row)
    p = tl.exp(logp)
    surprise = tl.where(p > 0, logp, 0.0) + tl.load(entropy_ptr + row)
    own = tl.where(columns == tl.load(target_ptr + row), 1.0, 0.0)
    gradient = (g_logprob * (own - p) - g_entropy * p * surprise) * inverse
    if CAPPED:
        capped = 2.0 / (1.0 + tl.exp(-2.0 * x / soft_cap)) - 1.0
        gradient *= 1.0 - capped * capped
    gradient = tl.where(inside, gradient, 0.0)  # padding has none
    gradient = gradient.to(gradient_ptr.dtype.element_ty)
    tl.store(gradient_ptr + place, gradient, mask=columns < columns_of_all)


def statistics(
    logits: Tensor, targets: Tensor, inverse_temperature: Tensor, shaping: Shaping
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what `rows.statistics` does, not differentiable."""
    num_rows, columns = logits.shape
    logits = logits.contiguous()
    logprob, entropy, lse = (
        torch.empty(num_rows, dtype=torch.float32, device=logits.device) for _ in range(3)
    )
    top1 = torch.empty_like(targets)
    if num_rows:
        statistics_kernel[(num_rows,)](
            logits,
            targets.contiguous(),
            inverse_temperature.float().contiguous(),
            logprob,
            entropy,
            lse,
            top1,
            logits.stride(0),
            vocabulary(columns, shaping),
            shaping.soft_cap or 0.0,
            CAPPED=shaping.soft_cap is not None,
            BLOCK=min(_BLOCK, triton.next_power_of_2(columns)),
            num_warps=_WARPS,
        )
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
    dtype: torch.dtype,
) -> Tensor:
    """Compute what `rows.logit_gradient` does; in other memory where the type is another, since
    programs that share a row would write over what others have yet to read."""
    num_rows, columns = logits.shape
    logits = logits.contiguous()
    found = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    block = min(_BLOCK, triton.next_power_of_2(columns))
    if num_rows:
        gradient_kernel[(num_rows, triton.cdiv(columns, block))](
            logits,
            found,
            targets.contiguous(),
            inverse_temperature.float().contiguous(),
            entropy.contiguous(),
            lse.contiguous(),
            g_logprob.float().contiguous(),
            g_entropy.float().contiguous(),
            logits.stride(0),
            vocabulary(columns, shaping),
            columns,
            shaping.soft_cap or 0.0,
            CAPPED=shaping.soft_cap is not None,
            BLOCK=block,
            num_warps=_WARPS,
        )
    return found


def vocabulary(columns: int, shaping: Shaping) -> int:
    """Count the columns that are not padding."""
    return columns if shaping.vocabulary is None else min(columns, shaping.vocabulary)
