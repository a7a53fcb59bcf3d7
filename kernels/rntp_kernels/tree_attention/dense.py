"""The oracle: a boolean mask over all pairs. Any device, any float type, quadratic memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rntp_kernels.tree_attention.layout import TreeLayout


def dense_mask(layout: TreeLayout) -> Tensor:
    """bool [N, N]: row i may attend to column j."""
    mask = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    for segment, length in enumerate(layout.lengths):
        first = layout.offsets[segment]
        rows = slice(first, first + length)
        mask[rows, rows] = torch.ones(length, length, dtype=torch.bool).tril()
        for ancestor, visible in layout.lineage(segment):
            seen = layout.offsets[ancestor]
            mask[rows, seen : seen + visible] = True
    return mask


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q [1, Hq, N, D], k and v [1, Hkv, N, D], mask bool [N, N] -> [1, Hq, N, D]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
