"""One forest, its plan made once and used by every layer."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
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

    asking: the first segment whose tokens ask. With it q and the result have the rows of the
    segments from there on, and k and v still those of all.

    implementation: see `rntp_kernels.tree_attention.selection`; what `auto` means depends on the
    first layer's tensors, and is in `implementation` after it. The first call raises ValueError
    for one that cannot run here, RuntimeError for one that computes something else.
    """

    def __init__(
        self,
        layout: TreeLayout,
        device: torch.device | str = "cpu",
        implementation: Implementation = "auto",
        *,
        asking: int = 0,
    ) -> None:
        self.layout = layout
        self.device = torch.device(device)
        self.implementation = implementation
        self._asking = asking
        self._attend: Attend | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self._attend is None:
            plain = is_plain(self.layout) and not self._asking
            self.implementation = choose(self.implementation, q, k, plain=plain)
            self._attend = prepare(self.implementation, self.layout, q, asking=self._asking)
        return self._attend(q, k, v, scale)


class TwoPasses:
    """Attention of a forest whose last segments are computed after the others, and apart.

    A model runs the first segments with `leading`, which keeps their keys and values, and then the
    others with `trailing`: `(layer, q, k, v, scale) -> out`, each with the rows of its own part.
    What the loss does not read may so be computed without a graph. No gradient flows from the
    trailing part into the leading one.

    trailing_from: the first segment of the second part.
    """

    def __init__(
        self,
        layout: TreeLayout,
        trailing_from: int,
        device: torch.device | str = "cpu",
        implementation: Implementation = "auto",
    ) -> None:
        self._lead = TreeAttention(layout.until(trailing_from), device, implementation)
        self._trail = TreeAttention(layout, device, implementation, asking=trailing_from)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._keeps = True

    def leading(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self._keeps:  # not when activation checkpointing runs a layer once more
            self._kept[layer] = k.detach(), v.detach()
        return self._lead(layer, q, k, v, scale)

    def trailing(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._keeps = False
        before_k, before_v = self._kept.pop(layer)
        k, v = torch.cat([before_k, k], dim=2), torch.cat([before_v, v], dim=2)
        return self._trail(layer, q, k, v, scale)


def prepare(name: Implementation, layout: TreeLayout, q: Tensor, *, asking: int = 0) -> Attend:
    """One implementation with its plan on the device of the queries, [1, Hq, N, D].

    asking: see `TreeAttention`.
    """
    if name == "segmented":
        plan = _to(make_plan(layout, asking), q.device)
        return lambda q, k, v, scale: segmented_attention(q, k, v, plan, scale)
    if asking:
        # Attention over all tokens costs less than a kernel of its own would be worth.
        silent, everyone = layout.offsets[asking], prepare(name, layout, q)
        return lambda q, k, v, scale: everyone(F.pad(q, (0, 0, silent, 0)), k, v, scale)[
            :, :, silent:
        ]
    if name == "dense":
        mask = dense_mask(layout).to(q.device)
        return lambda q, k, v, scale: dense_attention(q, k, v, mask, scale)
    if name == "flex":
        from rntp_kernels.tree_attention.flex import FlexTree

        return FlexTree(layout, q.device)
    if name == "flash":
        return FlashSequences(layout, q.device)
    from rntp_kernels.tree_attention.triton_tree import TritonTree, tables_for

    tables = tables_for(layout, q).to(q.device)
    return lambda q, k, v, scale: TritonTree.apply(q, k, v, tables, scale)


def _to(plan: Plan, device: torch.device | str) -> Plan:
    return replace(
        plan,
        keys=plan.keys.to(device),
        queries=plan.queries.to(device),
        teeth=tuple(replace(tooth, mask=tooth.mask.to(device)) for tooth in plan.teeth),
        order=None if plan.order is None else plan.order.to(device),
    )
