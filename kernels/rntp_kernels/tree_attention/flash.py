"""Attention of plain packed sequences, a forest of nothing but roots, by the package flash-attn."""

import torch
from torch import Tensor

from rntp_kernels.tree_attention.layout import ROOT, TreeLayout


class FlashSequences:
    """Callable `(q, k, v, scale) -> out`, as `dense_attention`; bfloat16 and float16 on CUDA.

    Raises ValueError for a layout with a branch.
    """

    def __init__(self, layout: TreeLayout, device: torch.device) -> None:
        if not is_plain(layout):
            raise ValueError("flash-attn knows sequences, and this layout has branches")
        from flash_attn import flash_attn_varlen_func

        self._attend = flash_attn_varlen_func
        self._offsets = torch.tensor(layout.offsets, dtype=torch.int32, device=device)
        self._longest = max(layout.lengths)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        # [1, heads, N, D] -> [N, heads, D]; groups of query heads share keys there, too.
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        offsets, longest = self._offsets, self._longest
        out: Tensor = self._attend(
            q, k, v, offsets, offsets, longest, longest, softmax_scale=scale, causal=True
        )
        return out.transpose(0, 1)[None]


def is_plain(layout: TreeLayout) -> bool:
    """Tell whether no segment hangs at another."""
    return all(parent == ROOT for parent in layout.parents)
