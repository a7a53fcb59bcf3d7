"""The head in chunks of rows: logits live only inside a chunk.

Matrix products run at library speed; between them one row kernel makes statistics out of a chunk's
float32 logits, and a second one turns the logits into their gradient. Chunks are large, because the
weight's gradient is read and written once a chunk. The logits of the last chunk are kept for the
backward: rows that fit one chunk are not projected twice, and memory is that of two at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rntp_kernels.linear_logprob import rows as torch_rows
from rntp_kernels.linear_logprob.projection import float32_logits
from rntp_kernels.linear_logprob.rows import Shaping, to_float32

# (hidden, weight, targets, inverse temperature, shaping) -> log-prob, entropy, log-sum-exp, arg-max
Scores = Callable[[Tensor, Tensor, Tensor, Tensor, Shaping], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class KernelConfig:
    """What the head in chunks works with.

    chunk_rows: rows whose logits are held at a time. row_kernels: module that has `statistics` and
    `logit_gradient`. scores: a forward that makes no logits, in place of chunks of them.
    drop_zero_rows: the backward leaves out rows whose gradients are zero; the sums of the others
    then have another order, and the host waits for their number.
    """

    chunk_rows: int
    row_kernels: ModuleType = torch_rows
    scores: Scores | None = None
    drop_zero_rows: bool = False


class ChunkedLinearLogprob(torch.autograd.Function):
    """(hidden, weight, bias, targets, inverse_temperature, shaping, config) ->
    (logprob, entropy, top1).

    The backward computes the logits of all chunks but the last again: 6·N·H·V FLOP for one chunk,
    towards 8 for many.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        inverse_temperature: Tensor,
        shaping: Shaping,
        config: KernelConfig,
    ) -> tuple[Tensor, Tensor, Tensor]:
        operands = targets, inverse_temperature
        logits = None
        if config.scores is None:
            found, logits = _in_chunks(hidden, weight, bias, *operands, shaping, config)
            logprob, entropy, lse, top1 = found
        else:
            assert bias is None
            logprob, entropy, lse, top1 = config.scores(hidden, weight, *operands, shaping)
        ctx.last_logits = logits if any(ctx.needs_input_grad[:3]) else None
        ctx.save_for_backward(hidden, weight, bias, *operands, entropy, lse)
        ctx.mark_non_differentiable(top1)
        ctx.shaping, ctx.config = shaping, config
        return logprob, entropy, top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, inverse, entropy, lse = ctx.saved_tensors
        g_logprob, g_entropy, _ = grads
        # A second backward finds None: the gradient takes the logits' place.
        last_logits, ctx.last_logits = ctx.last_logits, None
        rows = _Rows(hidden, targets, inverse, entropy, lse, g_logprob, g_entropy)
        kept = _nonzero_rows(g_logprob, g_entropy) if ctx.config.drop_zero_rows else None
        if kept is not None:
            rows = _Rows(*(x.index_select(0, kept) for x in rows))
            whole = last_logits is not None and len(last_logits) == len(hidden)
            last_logits = last_logits.index_select(0, kept) if whole else None
        head = weight, bias
        d_hidden, d_weight, d_bias = _gradients(head, rows, last_logits, ctx.shaping, ctx.config)
        if kept is not None:
            d_hidden = torch.zeros_like(hidden).index_copy_(0, kept, d_hidden)
        of_bias = None if bias is None else _like(d_bias, bias)
        return d_hidden, _like(d_weight, weight), of_bias, *[None] * 4


def _in_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    inverse_temperature: Tensor,
    shaping: Shaping,
    config: KernelConfig,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None]:
    """Compute what `Scores` gives, and return the logits of the last chunk with it."""
    logprob, entropy, lse = (inverse_temperature.new_empty(targets.shape) for _ in range(3))
    top1 = torch.empty_like(targets)
    logits = None
    for rows in _chunks(hidden.shape[0], config.chunk_rows):
        logits = float32_logits(hidden[rows], weight, bias)
        logprob[rows], entropy[rows], lse[rows], top1[rows] = config.row_kernels.statistics(
            logits, targets[rows], inverse_temperature[rows], shaping
        )
    return (logprob, entropy, lse, top1), logits


class _Rows(NamedTuple):
    """What the backward needs of each row: hidden [N, H], the others [N]."""

    hidden: Tensor
    targets: Tensor
    inverse_temperature: Tensor
    entropy: Tensor
    lse: Tensor
    g_logprob: Tensor
    g_entropy: Tensor


def _gradients(
    head: tuple[Tensor, Tensor | None],
    rows: _Rows,
    last_logits: Tensor | None,
    shaping: Shaping,
    config: KernelConfig,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the gradients of hidden, weight and bias (None: there are no rows, or no bias).

    The gradient of the logits is formed in float32 and rounded once, to the operands' type, for the
    two products that it goes into.
    """
    weight, bias = head
    d_hidden = torch.zeros_like(rows.hidden)
    d_weight = d_bias = None
    for chunk in reversed(list(_chunks(len(rows.hidden), config.chunk_rows))):
        own = _Rows(*(x[chunk] for x in rows))
        logits = last_logits
        if logits is None:
            logits = float32_logits(own.hidden.detach(), weight.detach(), bias)
        last_logits = None
        d_logits = config.row_kernels.logit_gradient(logits, *own[1:], shaping, weight.dtype)
        d_hidden[chunk] = d_logits @ weight
        d_weight = _accumulate(d_weight, d_logits, own.hidden)
        d_bias = _column_sums(d_bias, d_logits, bias)
    return d_hidden, d_weight, d_bias


def _nonzero_rows(g_logprob: Tensor, g_entropy: Tensor) -> Tensor | None:
    """Find the rows, int64, whose upstream gradients are not both zero; None if all are so."""
    kept = ((g_logprob != 0) | (g_entropy != 0)).nonzero()[:, 0]
    return None if len(kept) == len(g_logprob) else kept


def _accumulate(d_weight: Tensor | None, d_logits: Tensor, hidden: Tensor) -> Tensor:
    """Add d_logits.T @ hidden to d_weight in float32 or better; None counts as zero."""
    if d_logits.is_cuda and d_logits.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(d_logits.T, hidden, out_dtype=torch.float32)
    else:
        product = d_logits.T @ hidden
    # One term alone is in no sum: to widen it would be to copy it twice for nothing.
    return product if d_weight is None else to_float32(d_weight).add_(to_float32(product))


def _column_sums(d_bias: Tensor | None, d_logits: Tensor, bias: Tensor | None) -> Tensor | None:
    """Add the sum over rows to d_bias; None counts as zero. None where there is no bias."""
    if bias is None:
        return None
    kind = torch.float64 if d_logits.dtype == torch.float64 else torch.float32
    own = d_logits.sum(dim=0, dtype=kind)
    return own if d_bias is None else d_bias.add_(own)


def _like(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """Cast a gradient to the parameter's type; zeros if there were no rows."""
    return torch.zeros_like(parameter) if gradient is None else gradient.to(parameter.dtype)


def _chunks(num_rows: int, chunk_rows: int) -> Iterator[slice]:
    """Cut rows into slices of at most `chunk_rows`."""
    for first in range(0, num_rows, chunk_rows):
        yield slice(first, min(first + chunk_rows, num_rows))
