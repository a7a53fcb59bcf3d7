"""The head in chunks of rows: logits live only inside a chunk.

Matrix products run at library speed; between them one row kernel makes statistics out of a chunk's
logits, and a second one turns the logits into their gradient in place. Chunks are large, because
the weight's gradient is read and written once a chunk. The logits of the last chunk are kept for
the backward: rows that fit one chunk are not projected twice, and memory is that of two at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rntp_kernels.linear_logprob import rows as torch_rows
from rntp_kernels.linear_logprob.rows import Shaping, wide

# (rows, their log-probs [n], their entropies [n]) -> losses [n]
PerTokenLoss = Callable[[slice, Tensor, Tensor], Tensor]


# (hidden, weight, targets, inverse temperature, shaping) -> log-prob, entropy, log-sum-exp, arg-max
Scores = Callable[[Tensor, Tensor, Tensor, Tensor, Shaping], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class How:
    """chunk_rows: whose logits are held at a time. kernels: module of row kernels. scores: a
    forward that makes no logits, in place of chunks of them. drop_zero_rows: the backward leaves
    out rows whose gradients are zero; the sums of the others then have another order, and the host
    waits for their number.
    """

    chunk_rows: int
    kernels: ModuleType = torch_rows
    scores: Scores | None = None
    drop_zero_rows: bool = False


class ChunkedLinearLogprob(torch.autograd.Function):
    """(hidden, weight, bias, targets, inverse_temperature, shaping, how) ->
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
        how: How,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, targets = without_ignored(targets, shaping)
        operands = targets, inverse_temperature
        logits = None
        if how.scores is None:
            found, logits = _in_chunks(hidden, weight, bias, *operands, shaping, how)
            logprob, entropy, lse, top1 = found
        else:
            assert bias is None
            logprob, entropy, lse, top1 = how.scores(hidden, weight, *operands, shaping)
        ctx.last_logits = logits if any(ctx.needs_input_grad[:3]) else None
        ctx.save_for_backward(hidden, weight, bias, *operands, entropy, lse, kept)
        ctx.mark_non_differentiable(top1)
        ctx.shaping, ctx.how = shaping, how
        if kept is not None:
            logprob, entropy = logprob.where(kept, 0.0), entropy.where(kept, 0.0)
        return logprob, entropy, top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, inverse, entropy, lse, kept = ctx.saved_tensors
        g_logprob, g_entropy, _ = grads
        if kept is not None:
            g_logprob, g_entropy = g_logprob.where(kept, 0.0), g_entropy.where(kept, 0.0)
        # A second backward finds None: the gradient takes the logits' place.
        last_logits, ctx.last_logits = ctx.last_logits, None
        rows = _Rows(hidden, targets, inverse, entropy, lse, g_logprob, g_entropy)
        live = _live(g_logprob, g_entropy) if ctx.how.drop_zero_rows else None
        if live is not None:
            rows = _Rows(*(x.index_select(0, live) for x in rows))
            whole = last_logits is not None and len(last_logits) == len(hidden)
            last_logits = last_logits.index_select(0, live) if whole else None
        head = weight, bias
        d_hidden, d_weight, d_bias = _gradients(head, rows, last_logits, ctx.shaping, ctx.how)
        if live is not None:
            d_hidden = torch.zeros_like(hidden).index_copy_(0, live, d_hidden)
        of_bias = None if bias is None else _as(d_bias, bias)
        return d_hidden, _as(d_weight, weight), of_bias, *[None] * 4


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Raw logits, [N, V]."""
    return hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)


def _in_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    inverse_temperature: Tensor,
    shaping: Shaping,
    how: How,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None]:
    """What `Scores` gives, and the logits of the last chunk."""
    logprob, entropy, lse = (inverse_temperature.new_empty(targets.shape) for _ in range(3))
    top1 = torch.empty_like(targets)
    logits = None
    for rows in _chunks(hidden.shape[0], how.chunk_rows):
        logits = project(hidden[rows], weight, bias)
        logprob[rows], entropy[rows], lse[rows], top1[rows] = how.kernels.statistics(
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
    how: How,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of hidden, and of weight and bias (None: there are no rows, or no bias)."""
    weight, bias = head
    d_hidden = torch.zeros_like(rows.hidden)
    d_weight = d_bias = None
    for chunk in reversed(list(_chunks(len(rows.hidden), how.chunk_rows))):
        own = _Rows(*(x[chunk] for x in rows))
        logits = project(own.hidden, weight, bias) if last_logits is None else last_logits
        last_logits = None
        d_logits = how.kernels.logit_gradient(logits, *own[1:], shaping)
        d_hidden[chunk] = d_logits @ weight
        d_weight = _accumulate(d_weight, d_logits, own.hidden)
        d_bias = _column_sums(d_bias, d_logits, bias)
    return d_hidden, d_weight, d_bias


def _live(g_logprob: Tensor, g_entropy: Tensor) -> Tensor | None:
    """Rows, int64, that pass a gradient on; None if all of them do."""
    live = ((g_logprob != 0) | (g_entropy != 0)).nonzero()[:, 0]
    return None if len(live) == len(g_logprob) else live


class ChunkedLoss(torch.autograd.Function):
    """(hidden, weight, bias, targets, inverse_temperature, loss, shaping, how) ->
    (sum of the losses, logprob, entropy). A chunk's gradient is formed while its logits are there:
    6·N·H·V FLOP, forward and backward together.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        inverse_temperature: Tensor,
        loss: PerTokenLoss,
        shaping: Shaping,
        how: How,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, targets = without_ignored(targets, shaping)
        logprob, entropy = (inverse_temperature.new_empty(targets.shape) for _ in range(2))
        total = inverse_temperature.new_zeros(())
        d_hidden = torch.zeros_like(hidden)
        d_weight = d_bias = None
        for rows in _chunks(hidden.shape[0], how.chunk_rows):
            logits = project(hidden[rows], weight, bias)
            logp, ent, lse, _ = how.kernels.statistics(
                logits, targets[rows], inverse_temperature[rows], shaping
            )
            logprob[rows], entropy[rows] = logp, ent
            if kept is not None:
                logprob[rows] = logp.where(kept[rows], 0.0)
                entropy[rows] = ent.where(kept[rows], 0.0)
            value, g_logprob, g_entropy = _coefficients(loss, rows, logprob[rows], entropy[rows])
            if kept is not None:
                g_logprob = g_logprob.where(kept[rows], 0.0)
                g_entropy = g_entropy.where(kept[rows], 0.0)
            total += value
            d_logits = how.kernels.logit_gradient(
                logits,
                targets[rows],
                inverse_temperature[rows],
                ent,
                lse,
                g_logprob,
                g_entropy,
                shaping,
            )
            d_hidden[rows] = d_logits @ weight
            d_weight = _accumulate(d_weight, d_logits, hidden[rows])
            d_bias = _column_sums(d_bias, d_logits, bias)
        of_bias = None if bias is None else _as(d_bias, bias)
        ctx.save_for_backward(d_hidden, _as(d_weight, weight), of_bias)
        ctx.mark_non_differentiable(logprob, entropy)
        return total, logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        found = (None if d is None else d * scale.to(d) for d in ctx.saved_tensors)
        return (*found, *[None] * 5)


def _coefficients(
    loss: PerTokenLoss, rows: slice, logprob: Tensor, entropy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Value of the loss of these rows, and its slopes in their log-probs and entropies."""
    with torch.enable_grad():
        leaves = logprob.detach().requires_grad_(), entropy.detach().requires_grad_()
        losses = loss(rows, *leaves)
        if losses.shape != logprob.shape:
            raise ValueError(f"the loss must give one value a row, {logprob.shape}: {losses.shape}")
        value = losses.sum()
        slopes: tuple[Tensor | None, ...] = (None, None)
        if value.requires_grad:
            slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    found = (torch.zeros_like(logprob) if slope is None else slope for slope in slopes)
    g_logprob, g_entropy = found
    return value.detach(), g_logprob, g_entropy


def without_ignored(targets: Tensor, shaping: Shaping) -> tuple[Tensor | None, Tensor]:
    """1 for rows that count and 0 for ignored ones (None: all count); targets without -100s."""
    if shaping.ignored is None:
        return None, targets
    kept = targets != shaping.ignored
    return kept, targets.where(kept, 0)


def _accumulate(d_weight: Tensor | None, d_logits: Tensor, hidden: Tensor) -> Tensor:
    """d_weight + d_logits.T @ hidden: a sum in float32 or better; None counts as zero."""
    if d_logits.is_cuda and d_logits.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(d_logits.T, hidden, out_dtype=torch.float32)
    else:
        product = d_logits.T @ hidden
    # One term alone is in no sum: to widen it would be to copy it twice for nothing.
    return product if d_weight is None else wide(d_weight).add_(wide(product))


def _column_sums(d_bias: Tensor | None, d_logits: Tensor, bias: Tensor | None) -> Tensor | None:
    """d_bias + Σ over rows; None counts as zero. None where there is no bias."""
    if bias is None:
        return None
    kind = torch.float64 if d_logits.dtype == torch.float64 else torch.float32
    own = d_logits.sum(dim=0, dtype=kind)
    return own if d_bias is None else d_bias.add_(own)


def _as(d_weight: Tensor | None, weight: Tensor) -> Tensor:
    """In the weight's type; zeros if there were no rows."""
    return torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)


def _chunks(num_rows: int, chunk_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, chunk_rows):
        yield slice(first, min(first + chunk_rows, num_rows))
