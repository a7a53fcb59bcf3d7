"""One forest, its plan made once and used by every layer."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rntp_kernels.tree_attention.dense import dense_attention, dense_mask
from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.segmented import Plan, make_plan, segmented_attention

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
    return replace(
        plan,
        teeth=tuple(replace(tooth, mask=tooth.mask.to(device)) for tooth in plan.teeth),
        gather=None if plan.gather is None else plan.gather.to(device),
        order=None if plan.order is None else plan.order.to(device),
    )
