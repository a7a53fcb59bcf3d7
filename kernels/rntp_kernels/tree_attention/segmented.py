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
    """The B subtrees, padded to n tokens each, that hang at one point of a root.

    root: which root. prefix: its tokens that they see. mask: bool [B, 1, n, prefix + n].
    """

    root: int
    prefix: int
    mask: Tensor


@dataclass(frozen=True)
class Plan:
    """The stream cut into pieces: the roots, then the teeth, each B·n rows.

    sizes: rows of each piece. gather: int64 [sum of sizes], the row of the stream that each has
    (padding repeats one). order: int64 [N], where the pieces' outputs hold each row of the stream.
    Both None if the pieces already lie in the stream one behind the other, without padding.
    """

    sizes: tuple[int, ...]
    num_roots: int
    teeth: tuple[Tooth, ...]
    gather: Tensor | None
    order: Tensor | None


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

    roots = [s for s, parent in enumerate(layout.parents) if parent == ROOT]
    rows = [_rows(layout, s) for s in roots]
    real = [torch.ones(len(own), dtype=torch.bool) for own in rows]
    teeth = []
    for (root, attach), subtrees in groups.items():
        own_rows, own_real, mask = _pad(layout, attach, list(subtrees.values()))
        rows.append(own_rows)
        real.append(own_real)
        teeth.append(Tooth(roots.index(root), attach, mask))
    gather, places = torch.cat(rows), torch.cat(real).nonzero()[:, 0]
    order = places[torch.argsort(gather[places])]
    in_place = torch.equal(gather, torch.arange(layout.num_tokens))
    return Plan(
        sizes=tuple(map(len, rows)),
        num_roots=len(roots),
        teeth=tuple(teeth),
        gather=None if in_place else gather,
        order=None if in_place else order,
    )


def segmented_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
    """q [1, Hq, N, D], k and v [1, Hkv, N, D] -> [1, Hq, N, D]; equal to `dense_attention`.

    On the CPU bfloat16 is computed in float32: more exact, and the library's float32 kernel is the
    faster one there (2 cores, 9 heads of 64, forward and backward: 26 ms against 76 ms).
    """
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()
    queries, keys, values = (_pieces(x, plan) for x in (q, k, v))
    roots = range(plan.num_roots)
    out = [_causal(queries[i], keys[i], values[i], scale) for i in roots]
    for i, tooth in enumerate(plan.teeth, start=plan.num_roots):
        seen_k, seen_v = (x[tooth.root][:, :, : tooth.prefix] for x in (keys, values))
        out.append(_attend(queries[i], keys[i], values[i], seen_k, seen_v, tooth.mask, scale))
    packed = torch.cat(out, dim=2)
    return (packed if plan.order is None else packed.index_select(2, plan.order)).to(dtype)


def _pieces(x: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """One gather and one split for all pieces: their backward is one pass over the stream each,
    where that of a slice a piece would fill the whole stream with zeros for every one."""
    gathered = x if plan.gather is None else x.index_select(2, plan.gather)
    return gathered.split(plan.sizes, dim=2)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, seen_k: Tensor, seen_v: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """One tooth: q, k, v [1, heads, B·n, D], the prefix [1, Hkv, prefix, D] -> [1, Hq, B·n, D]."""
    width = mask.shape[0]

    def branches(x: Tensor) -> Tensor:  # -> [B, heads, n, D]
        return x[0].unflatten(1, (width, -1)).transpose(0, 1)

    def with_prefix(x: Tensor, seen: Tensor) -> Tensor:  # -> [B, heads, prefix + n, D]
        return torch.cat([seen.expand(width, -1, -1, -1), branches(x)], dim=2)

    out = F.scaled_dot_product_attention(
        branches(q),
        with_prefix(k, seen_k),
        with_prefix(v, seen_v),
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    )
    return out.transpose(0, 1).reshape(1, q.shape[1], -1, q.shape[3])


def _pad(
    layout: TreeLayout, attach: int, subtrees: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the subtrees of a tooth, int64 [B·n], which of them are real, and the mask."""
    longest = max(sum(layout.lengths[s] for s in subtree) for subtree in subtrees)
    rows, real, masks = [], [], []
    for subtree in subtrees:
        own = torch.cat([_rows(layout, s) for s in subtree])
        rows.append(F.pad(own, (0, longest - len(own)), value=int(own[-1])))
        real.append(torch.arange(longest) < len(own))
        # Padded queries see themselves, so that their softmax is finite; nobody sees them.
        among = torch.eye(longest, dtype=torch.bool)
        among[: len(own), : len(own)] = dense_mask(_subtree_layout(layout, subtree))
        masks.append(torch.cat([torch.ones(longest, attach, dtype=torch.bool), among], dim=1))
    return torch.cat(rows), torch.cat(real), torch.stack(masks)[:, None]


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
