"""What an attention layer does besides softmax(q · k): windows, soft caps, sinks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Style:
    """Of one layer.

    window: a key is seen by the rows less than so many positions behind it, and of its descent;
    None: by all of these. soft_cap: c of c · tanh(score / c), before the softmax (2408.00118).
    sinks: float [Hq], a score of each head for attending to nothing: it takes its share of the
    softmax and gives no value (2309.17453).
    """

    window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None

    @property
    def kind(self) -> tuple[int | None, float | None, bool]:
        """What a plan, and the choice of an implementation, depend on."""
        return self.window, self.soft_cap, self.sinks is not None

    @property
    def scores_only(self) -> bool:
        """Whether the softmax is that of the scores as they are."""
        return self.soft_cap is None and self.sinks is None

    def within(self, longest: int) -> "Style":
        """Drop a window that sequences of so many positions do not reach."""
        if self.window is None or self.window < longest:
            return self
        return Style(None, self.soft_cap, self.sinks)


PLAIN = Style()


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, style: Style = PLAIN
) -> Tensor:
    """Attend under a mask, bool [.., M, N].

    q [B, Hq, M, D], k [B, Hkv, N, D], v [B, Hkv, N, E] -> [B, Hq, M, E].

    The mask has the window in it. Every row has to see a key. Differentiable, in the sinks as well.
    """
    if style.scores_only:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    kv_heads = k.shape[1]
    rows = q.unflatten(1, (kv_heads, -1))  # [B, Hkv, repeat, M, D]
    scores = rows @ k[:, :, None].transpose(3, 4) * scale
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if style.soft_cap is not None:
        scores = style.soft_cap * torch.tanh(scores / style.soft_cap)
    scores = scores.masked_fill(~mask[:, :, None] if mask.ndim == 4 else ~mask, float("-inf"))
    if style.sinks is not None:
        sinks = style.sinks.to(scores.dtype).view(kv_heads, -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., : k.shape[2]].to(v.dtype)
    return (weights @ v[:, :, None]).flatten(1, 2)
