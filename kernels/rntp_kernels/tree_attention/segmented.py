"""Tree attention in pieces that library kernels know: the CPU path.

A root attends to itself causally. Then all the subtrees that hang at one point of a root run as
one batch against `root[:attach] ++ own subtree`. The prefix is never recomputed, only re-read.
Padding makes the subtrees of a batch equally long; padded keys are visible to padded queries only.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rntp_kernels.tree_attention.dense import dense_mask
from rntp_kernels.tree_attention.layout import ROOT, TreeLayout


@dataclass(frozen=True)
class Tooth:
    """The B subtrees, flattened to n tokens at most, that hang at one point of a root.

    rows: int64 [B·n], rows of the packed stream (padding repeats a row). keep: int64, which of
    those B·n are real. mask: bool [B, 1, n, prefix + n].
    """

    rows: Tensor
    keep: Tensor
    mask: Tensor
    prefix_first: int
    prefix: int


@dataclass(frozen=True)
class Plan:
    """roots: (first row, length) of each root. order: int64 [N], where the concatenated outputs of
    roots and teeth find each row of the packed stream."""

    roots: tuple[tuple[int, int], ...]
    teeth: tuple[Tooth, ...]
    order: Tensor


def make_plan(layout: TreeLayout) -> Plan:
    """Group the segments of a layout into roots and teeth."""
    home: list[tuple[int, int]] = []  # (root, attach) that each segment hangs from, in the end
    for segment, parent in enumerate(layout.parents):
        if parent == ROOT:
            home.append((segment, ROOT))
        elif layout.parents[parent] == ROOT:
            home.append((parent, layout.attach[segment]))
        else:
            home.append(home[parent])
    branch: list[int] = []  # the direct child of a root that each segment descends from
    for segment, parent in enumerate(layout.parents):
        is_child = parent != ROOT and layout.parents[parent] == ROOT
        branch.append(segment if parent == ROOT or is_child else branch[parent])

    groups: dict[tuple[int, int], dict[int, list[int]]] = {}
    for segment, (root, attach) in enumerate(home):
        if attach != ROOT:
            groups.setdefault((root, attach), {}).setdefault(branch[segment], []).append(segment)

    teeth = tuple(
        _tooth(layout, root, attach, list(subtrees.values()))
        for (root, attach), subtrees in groups.items()
    )
    roots = tuple(
        (layout.offsets[s], layout.lengths[s]) for s, p in enumerate(layout.parents) if p == ROOT
    )
    stream = [torch.arange(first, first + length) for first, length in roots]
    stream += [tooth.rows[tooth.keep] for tooth in teeth]
    return Plan(roots, teeth, torch.argsort(torch.cat(stream)))


def segmented_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
    """q [1, Hq, N, D], k and v [1, Hkv, N, D] -> [1, Hq, N, D]; equal to `dense_attention`.

    On the CPU bfloat16 is computed in float32: more exact, and the library's float32 kernel is the
    faster one there (2 cores, 9 heads of 64, forward and backward: 26 ms against 76 ms).
    """
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()
    pieces = [_root(q, k, v, first, length, scale) for first, length in plan.roots]
    pieces += [_attend_tooth(q, k, v, tooth, scale) for tooth in plan.teeth]
    return torch.cat(pieces, dim=2).index_select(2, plan.order).to(dtype)


def _root(q: Tensor, k: Tensor, v: Tensor, first: int, length: int, scale: float) -> Tensor:
    own = slice(first, first + length)
    return F.scaled_dot_product_attention(
        q[:, :, own], k[:, :, own], v[:, :, own], is_causal=True, scale=scale, enable_gqa=True
    )


def _attend_tooth(q: Tensor, k: Tensor, v: Tensor, tooth: Tooth, scale: float) -> Tensor:
    width = tooth.mask.shape[0]
    prefix = slice(tooth.prefix_first, tooth.prefix_first + tooth.prefix)

    def branches(x: Tensor) -> Tensor:  # [1, heads, N, D] -> [B, heads, n, D]
        picked = x[0].index_select(1, tooth.rows)
        return picked.view(x.shape[1], width, -1, x.shape[3]).transpose(0, 1)

    def with_prefix(x: Tensor) -> Tensor:  # -> [B, heads, prefix + n, D]
        return torch.cat([x[:, :, prefix].expand(width, -1, -1, -1), branches(x)], dim=2)

    out = F.scaled_dot_product_attention(
        branches(q),
        with_prefix(k),
        with_prefix(v),
        attn_mask=tooth.mask,
        scale=scale,
        enable_gqa=True,
    )
    flat = out.transpose(0, 1).reshape(1, q.shape[1], -1, q.shape[3])
    return flat.index_select(2, tooth.keep)


def _tooth(layout: TreeLayout, root: int, attach: int, subtrees: list[list[int]]) -> Tooth:
    longest = max(sum(layout.lengths[s] for s in subtree) for subtree in subtrees)
    rows, keep, masks = [], [], []
    for i, subtree in enumerate(subtrees):
        own = torch.cat([_rows(layout, s) for s in subtree])
        padding = longest - len(own)
        rows.append(F.pad(own, (0, padding), value=int(own[-1])))
        keep.append(torch.arange(len(own)) + i * longest)
        # Padded queries see themselves, so that their softmax is finite; nobody sees them.
        among = torch.eye(longest, dtype=torch.bool)
        among[: len(own), : len(own)] = dense_mask(_subtree_layout(layout, subtree))
        masks.append(torch.cat([torch.ones(longest, attach, dtype=torch.bool), among], dim=1))
    return Tooth(
        rows=torch.cat(rows),
        keep=torch.cat(keep),
        mask=torch.stack(masks)[:, None],
        prefix_first=layout.offsets[root],
        prefix=attach,
    )


def _rows(layout: TreeLayout, segment: int) -> Tensor:
    return torch.arange(layout.offsets[segment], layout.offsets[segment + 1])


def _subtree_layout(layout: TreeLayout, subtree: list[int]) -> TreeLayout:
    """The subtree as a tree of its own: its top becomes a root."""
    local = {segment: i for i, segment in enumerate(subtree)}
    return TreeLayout(
        lengths=tuple(layout.lengths[s] for s in subtree),
        parents=tuple(local.get(layout.parents[s], ROOT) for s in subtree),
        attach=tuple(layout.attach[s] if layout.parents[s] in local else 0 for s in subtree),
    )
