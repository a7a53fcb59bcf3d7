"""One forest, its plan made once and used by every layer."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rntp_kernels.tree_attention.dense import dense_attention, dense_mask
from rntp_kernels.tree_attention.flash import FlashSequences, is_plain
from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.segmented import Plan, make_plan, segmented_attention
from rntp_kernels.tree_attention.selection import Implementation, choose

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class TreeAttention:
    """Callable `(layer, q, k, v, scale) -> out` for one layout; see `TreeLayout` for who sees whom.

    q [1, Hq, N, D], k and v [1, Hkv, N, D] -> [1, Hq, N, D], differentiable.

    implementation: see `rntp_kernels.tree_attention.selection`; what `auto` means depends on the
    first layer's tensors, and is in `implementation` after it. The first call raises ValueError
    for one that cannot run here, RuntimeError for one that computes something else.
    """

    def __init__(
        self,
        layout: TreeLayout,
        device: torch.device | str = "cpu",
        implementation: Implementation = "auto",
    ) -> None:
        self.layout = layout
        self.device = torch.device(device)
        self.implementation = implementation
        self._attend: Attend | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self._attend is None:
            self.implementation = choose(self.implementation, q, k, plain=is_plain(self.layout))
            self._attend = prepare(self.implementation, self.layout, q)
        return self._attend(q, k, v, scale)


def prepare(name: Implementation, layout: TreeLayout, q: Tensor) -> Attend:
    """One implementation with its plan on the device of the queries, [1, Hq, N, D]."""
    if name == "dense":
        mask = dense_mask(layout).to(q.device)
        return lambda q, k, v, scale: dense_attention(q, k, v, mask, scale)
    if name == "flex":
        from rntp_kernels.tree_attention.flex import FlexTree

        return FlexTree(layout, q.device)
    if name == "flash":
        return FlashSequences(layout, q.device)
    if name == "triton":
        from rntp_kernels.tree_attention.triton_tree import TritonTree, tables_for

        tables = tables_for(layout, q).to(q.device)
        return lambda q, k, v, scale: TritonTree.apply(q, k, v, tables, scale)
    plan = _to(make_plan(layout), q.device)
    return lambda q, k, v, scale: segmented_attention(q, k, v, plan, scale)


def _to(plan: Plan, device: torch.device | str) -> Plan:
    return replace(
        plan,
        teeth=tuple(replace(tooth, mask=tooth.mask.to(device)) for tooth in plan.teeth),
        gather=None if plan.gather is None else plan.gather.to(device),
        order=None if plan.order is None else plan.order.to(device),
    )
