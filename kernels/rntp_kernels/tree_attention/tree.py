"""One forest, its plan made once and used by every layer."""

from typing import Literal

import torch
from torch import Tensor

from rntp_kernels.tree_attention.dense import dense_attention, dense_mask
from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.segmented import Plan, Tooth, make_plan, segmented_attention

Implementation = Literal["segmented", "dense"]


class TreeAttention:
    """Callable `(layer, q, k, v, scale) -> out` for one layout; see `TreeLayout` for who sees whom.

    q [1, Hq, N, D], k and v [1, Hkv, N, D] -> [1, Hq, N, D], differentiable.
    """

    def __init__(
        self,
        layout: TreeLayout,
        device: torch.device | str = "cpu",
        implementation: Implementation = "segmented",
    ) -> None:
        self.layout = layout
        self.implementation = implementation
        if implementation == "dense":
            self._mask = dense_mask(layout).to(device)
        else:
            self._plan = _to(make_plan(layout), device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self.implementation == "dense":
            return dense_attention(q, k, v, self._mask, scale)
        return segmented_attention(q, k, v, self._plan, scale)


def _to(plan: Plan, device: torch.device | str) -> Plan:
    teeth = tuple(
        Tooth(t.rows.to(device), t.keep.to(device), t.mask.to(device), t.prefix_first, t.prefix)
        for t in plan.teeth
    )
    return Plan(plan.roots, teeth, plan.order.to(device))
