"""Heads with values of another width than their keys (multi-head latent attention, 2405.04434).

Columns of zeros change no score and give columns of zeros, so that what takes equal widths computes
them as well.
"""

import torch.nn.functional as F
from torch import Tensor


def even_widths(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Pad q, k [.., D] and v [.., E] to the wider of the two; E comes back with them."""
    own, width = q.shape[-1], v.shape[-1]
    if own < width:
        q, k = (F.pad(x, (0, width - own)) for x in (q, k))
    elif own > width:
        v = F.pad(v, (0, own - width))
    return q, k, v, width
