"""The head in chunks of rows: logits live only inside a chunk, in the forward and the backward."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rntp_kernels.linear_logprob.reference import linear_logprob_reference, logits_of


class ChunkedLinearLogprob(torch.autograd.Function):
    """(hidden, weight, targets, inverse_temperature, chunk_rows) -> (logprob, entropy, top1)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprob = inverse_temperature.new_empty(targets.shape)
        entropy = inverse_temperature.new_empty(targets.shape)
        top1 = torch.empty_like(targets)
        for rows in _chunks(hidden.shape[0], chunk_rows):
            logprob[rows], entropy[rows], top1[rows] = linear_logprob_reference(
                hidden[rows], weight, targets[rows], inverse_temperature[rows]
            )
        ctx.save_for_backward(hidden, weight, targets, inverse_temperature, entropy)
        ctx.mark_non_differentiable(top1)
        ctx.chunk_rows = chunk_rows
        return logprob, entropy, top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With z = logits / temperature and p = softmax(z):

        dz_j = g_logprob · (1[j = target] − p_j) − g_entropy · p_j · (log p_j + entropy)
        """
        hidden, weight, targets, inverse_temperature, entropy = ctx.saved_tensors
        g_logprob, g_entropy, _ = grads
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=inverse_temperature.dtype)
        for rows in _chunks(hidden.shape[0], ctx.chunk_rows):
            scale = inverse_temperature[rows, None]
            logp = torch.log_softmax(logits_of(hidden[rows], weight) * scale, dim=-1)
            finite = logp.clamp_min(torch.finfo(logp.dtype).min)
            slope = g_logprob[rows, None] + g_entropy[rows, None] * (finite + entropy[rows, None])
            d_logits = logp.exp_().mul_(slope).neg_()
            own = targets[rows, None]
            d_logits.scatter_add_(1, own, g_logprob[rows, None])
            d_logits = d_logits.mul_(scale).to(hidden.dtype)
            d_hidden[rows] = d_logits @ weight
            d_weight += d_logits.T @ hidden[rows]
        return d_hidden, d_weight.to(weight.dtype), None, None, None


def _chunks(num_rows: int, chunk_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, chunk_rows):
        yield slice(first, min(first + chunk_rows, num_rows))
