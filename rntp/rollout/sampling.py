"""Drawing tokens: inverse transform sampling, untruncated, one counter-based uniform a token."""

from collections.abc import Callable

import torch
from rntp_kernels import sample
from torch import Tensor

Draw = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample from softmax(logits / temperature); see `rntp_kernels.sample`.

    logits: [N, V]. uniforms: float64 [N] in [0, 1). Returns ids int64 [N] and their log-probs in
    nats, float32 or better, [N].
    """
    return sample(logits, uniforms, temperature)


def greedy(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The most likely token instead; same signature as `draw`."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp, ids = torch.log_softmax(wide / temperature, dim=-1).max(dim=-1)
    return ids, logp


def always(token_id: int) -> Draw:
    """One token whatever the model says, with the log-prob that it had; made to replace `draw`."""

    def put(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logp = logp_of(logits, token_id, temperature)
        return torch.full(logp.shape, token_id, device=logits.device), logp

    return put


def logp_of(logits: Tensor, token_id: int, temperature: float) -> Tensor:
    """Log-prob of one token under softmax(logits / temperature), nats, float32 or better, [N].

    logits: [N, V].
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide / temperature, dim=-1)[:, token_id]
