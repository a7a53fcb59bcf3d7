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
from rntp_kernels.tree_attention.style import PLAIN, Style
from rntp_kernels.tree_attention.widths import even_widths

Attend = Callable[[Tensor, Tensor, Tensor, float, Style], Tensor]


class TreeAttention:
    """Callable `(layer, q, k, v, scale, style) -> out` for one layout; see `TreeLayout` for who
    sees whom, and `Style` for what layers may do besides.

    q [1, Hq, N, D], k [1, Hkv, N, D], v [1, Hkv, N, E] -> [1, Hq, N, E], differentiable.

    queries_from: the first segment whose tokens are queries. With it q and the result have the rows
    of the segments from there on, and k and v still those of all.

    implementation: see `rntp_kernels.tree_attention.selection`; what `auto` means depends on the
    first layer's tensors, and is in `implementation` after it; for layers of another style it is
    chosen anew. A call raises ValueError for one that cannot run here, RuntimeError for one that
    computes something else.
    """

    def __init__(
        self,
        layout: TreeLayout,
        device: torch.device | str = "cpu",
        implementation: Implementation = "auto",
        *,
        queries_from: int = 0,
    ) -> None:
        self.layout = layout
        self.device = torch.device(device)
        self.implementation = implementation
        self._asked = implementation
        self._queries_from = queries_from
        longest = zip(layout.starts, layout.lengths, strict=True)
        self._longest = max(start + length for start, length in longest)
        self._attend: dict[object, Attend] = {}  # by style and width

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, style: Style = PLAIN
    ) -> Tensor:
        style = style.within(self._longest)
        q, k, v, width = even_widths(q, k, v)
        kind = (*style.kind, q.shape[3])
        if kind not in self._attend:
            plain = is_plain(self.layout) and not self._queries_from
            chosen = choose(self._asked, q, k, plain=plain, style=style)
            self.implementation = self.implementation if self._attend else chosen
            self._attend[kind] = prepare(
                chosen, self.layout, q, queries_from=self._queries_from, style=style
            )
        return self._attend[kind](q, k, v, scale, style)[..., :width]


class TwoPasses:
    """Attention of a forest whose last segments are computed after the others, and apart.

    A model runs the first segments with `leading`, which keeps their keys and values, and then the
    others with `trailing`: `(layer, q, k, v, scale, style) -> out`, each with its own part's rows.
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
        self._trail = TreeAttention(layout, device, implementation, queries_from=trailing_from)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._keeps = True

    def leading(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, style: Style = PLAIN
    ) -> Tensor:
        if self._keeps:  # not when activation checkpointing runs a layer once more
            self._kept[layer] = k.detach(), v.detach()
        return self._lead(layer, q, k, v, scale, style)

    def trailing(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, style: Style = PLAIN
    ) -> Tensor:
        self._keeps = False
        before_k, before_v = self._kept.pop(layer)
        k, v = torch.cat([before_k, k], dim=2), torch.cat([before_v, v], dim=2)
        return self._trail(layer, q, k, v, scale, style)


def prepare(
    name: Implementation,
    layout: TreeLayout,
    q: Tensor,
    *,
    queries_from: int = 0,
    style: Style = PLAIN,
) -> Attend:
    """Make one implementation's plan, on the device of the queries, [1, Hq, N, D].

    queries_from: see `TreeAttention`. style: of the layers that it is for; calls take theirs, of
    the same kind.
    """
    if name == "segmented":
        plan = _to(make_plan(layout, queries_from, style.window), q.device)
        return lambda q, k, v, scale, style: segmented_attention(q, k, v, plan, scale, style)
    if queries_from:
        # Attention over all tokens costs less than a kernel of its own would be worth.
        skipped, attend = layout.offsets[queries_from], prepare(name, layout, q, style=style)
        return lambda q, k, v, scale, style: attend(
            F.pad(q, (0, 0, skipped, 0)), k, v, scale, style
        )[:, :, skipped:]
    if name == "dense":
        mask = dense_mask(layout, style.window).to(q.device)
        return lambda q, k, v, scale, style: dense_attention(q, k, v, mask, scale, style)
    if name == "flash":
        sequences = FlashSequences(layout, q.device)
        return lambda q, k, v, scale, style: sequences(q, k, v, scale)
    from rntp_kernels.tree_attention.triton_tree import attend_by_triton, tables_for

    tables = tables_for(layout, q, style.window).to(q.device)
    return lambda q, k, v, scale, style: attend_by_triton(q, k, v, tables, scale, style)


def _to(plan: Plan, device: torch.device | str) -> Plan:
    """Copy a plan to a device."""
    return replace(
        plan,
        keys=plan.keys.to(device),
        queries=plan.queries.to(device),
        groups=tuple(replace(group, mask=group.mask.to(device)) for group in plan.groups),
        order=None if plan.order is None else plan.order.to(device),
        window_masks=tuple(None if mask is None else mask.to(device) for mask in plan.window_masks),
    )
