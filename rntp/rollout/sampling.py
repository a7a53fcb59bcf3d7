"""Drawing tokens: inverse transform sampling, untruncated, one counter-based uniform a token."""

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample from softmax(logits / temperature).

    logits: [N, V]. uniforms: float64 [N] in [0, 1). Returns ids int64 [N] and their log-probs in
    nats, float32 or better, [N]. The cumulative sum runs in float64, so that no token of a large
    vocabulary loses its share to rounding; a token of probability 0 is never drawn.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(wide / temperature, dim=-1)
    cumulative = logp.exp().cumsum(dim=-1, dtype=torch.float64)
    wanted = uniforms[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, wanted, right=True).clamp_max(logits.shape[1] - 1)
    return ids[:, 0], logp.gather(1, ids)[:, 0]


def greedy(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The most likely token instead; same signature as `draw`."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp, ids = torch.log_softmax(wide / temperature, dim=-1).max(dim=-1)
    return ids, logp


def always(token_id: int) -> Draw:
    """One token whatever the model says, with the log-prob that it had; made to replace `draw`."""

    def put(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        logp = torch.log_softmax(wide / temperature, dim=-1)[:, token_id]
        return torch.full(logp.shape, token_id, device=logits.device), logp

    return put
