"""The oracle: a boolean mask over all pairs. Any device, any float type, quadratic memory."""

import torch
from torch import Tensor

from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.style import PLAIN, Style, masked_attention


def dense_mask(layout: TreeLayout, window: int | None = None) -> Tensor:
    """Make the mask, bool [N, N]: row i may attend to column j; see `Style` for the window."""
    mask = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    for segment, length in enumerate(layout.lengths):
        first = layout.offsets[segment]
        rows = slice(first, first + length)
        mask[rows, rows] = torch.ones(length, length, dtype=torch.bool).tril()
        for ancestor, visible in layout.lineage(segment):
            seen = layout.offsets[ancestor]
            mask[rows, seen : seen + visible] = True
    if window is not None:
        position = layout.position_ids()
        mask &= position[:, None] - position < window
    return mask


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, style: Style = PLAIN
) -> Tensor:
    """Attend under a mask, bool [N, N].

    q [1, Hq, N, D], k [1, Hkv, N, D], v [1, Hkv, N, E] -> [1, Hq, N, E].
    """
    return masked_attention(q, k, v, mask, scale, style)
