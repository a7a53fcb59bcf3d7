"""The head in chunks of rows: logits live only inside a chunk.

Matrix products run at library speed; between them one row kernel makes statistics out of a chunk's
logits, and a second one turns the logits into their gradient in place. Chunks are large, because
the weight's gradient is read and written once a chunk. The logits of the last chunk are kept for
the backward: rows that fit one chunk are not projected twice, and memory is that of two at most.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rntp_kernels.linear_logprob import rows as torch_rows
from rntp_kernels.linear_logprob.rows import Shaping, wide

# (rows, their log-probs [n], their entropies [n]) -> losses [n]
PerTokenLoss = Callable[[slice, Tensor, Tensor], Tensor]


class ChunkedLinearLogprob(torch.autograd.Function):
    """(hidden, weight, targets, inverse_temperature, shaping, chunk_rows, row kernels) ->
    (logprob, entropy, top1). The backward computes the logits of all chunks but the last again:
    6·N·H·V FLOP for one chunk, towards 8 for many.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        shaping: Shaping,
        chunk_rows: int,
        kernels: ModuleType = torch_rows,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, targets = without_ignored(targets, shaping)
        logprob, entropy, lse = (inverse_temperature.new_empty(targets.shape) for _ in range(3))
        top1 = torch.empty_like(targets)
        logits = None
        for rows in _chunks(hidden.shape[0], chunk_rows):
            logits = hidden[rows] @ weight.T
            logprob[rows], entropy[rows], lse[rows], top1[rows] = kernels.statistics(
                logits, targets[rows], inverse_temperature[rows], shaping
            )
        ctx.last_logits = logits if any(ctx.needs_input_grad[:2]) else None
        ctx.save_for_backward(hidden, weight, targets, inverse_temperature, entropy, lse, kept)
        ctx.mark_non_differentiable(top1)
        ctx.shaping, ctx.chunk_rows, ctx.kernels = shaping, chunk_rows, kernels
        if kept is not None:
            logprob, entropy = logprob.where(kept, 0.0), entropy.where(kept, 0.0)
        return logprob, entropy, top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, inverse_temperature, entropy, lse, kept = ctx.saved_tensors
        g_logprob, g_entropy, _ = grads
        if kept is not None:
            g_logprob, g_entropy = g_logprob.where(kept, 0.0), g_entropy.where(kept, 0.0)
        d_hidden = torch.zeros_like(hidden)
        d_weight = None
        # A second backward finds None: the gradient takes the logits' place.
        last_logits, ctx.last_logits = ctx.last_logits, None
        for rows in reversed(list(_chunks(hidden.shape[0], ctx.chunk_rows))):
            logits = hidden[rows] @ weight.T if last_logits is None else last_logits
            last_logits = None
            d_logits = ctx.kernels.logit_gradient(
                logits,
                targets[rows],
                inverse_temperature[rows],
                entropy[rows],
                lse[rows],
                g_logprob[rows],
                g_entropy[rows],
                ctx.shaping,
            )
            d_hidden[rows] = d_logits @ weight
            d_weight = _accumulate(d_weight, d_logits, hidden[rows])
        return d_hidden, _as(d_weight, weight), *[None] * 5


class ChunkedLoss(torch.autograd.Function):
    """(hidden, weight, targets, inverse_temperature, loss, shaping, chunk_rows, row kernels) ->
    (sum of the losses, logprob, entropy). A chunk's gradient is formed while its logits are there:
    6·N·H·V FLOP, forward and backward together.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        loss: PerTokenLoss,
        shaping: Shaping,
        chunk_rows: int,
        kernels: ModuleType = torch_rows,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, targets = without_ignored(targets, shaping)
        logprob, entropy = (inverse_temperature.new_empty(targets.shape) for _ in range(2))
        total = inverse_temperature.new_zeros(())
        d_hidden = torch.zeros_like(hidden)
        d_weight = None
        for rows in _chunks(hidden.shape[0], chunk_rows):
            logits = hidden[rows] @ weight.T
            logp, ent, lse, _ = kernels.statistics(
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
            d_logits = kernels.logit_gradient(
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
        ctx.save_for_backward(d_hidden, _as(d_weight, weight))
        ctx.mark_non_differentiable(logprob, entropy)
        return total, logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = grads[0]
        return (d_hidden * scale.to(d_hidden), d_weight * scale.to(d_weight), *[None] * 6)


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
    """d_weight + d_logits.T @ hidden, in float32 or better; None counts as zero."""
    if d_logits.is_cuda and d_logits.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(d_logits.T, hidden, out_dtype=torch.float32)
    else:
        product = wide(d_logits.T @ hidden)
    return product if d_weight is None else d_weight.add_(product)


def _as(d_weight: Tensor | None, weight: Tensor) -> Tensor:
    """In the weight's type; zeros if there were no rows."""
    return torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)


def _chunks(num_rows: int, chunk_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, chunk_rows):
        yield slice(first, min(first + chunk_rows, num_rows))
