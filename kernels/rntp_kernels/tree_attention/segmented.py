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
from rntp_kernels.tree_attention.shared_prefix import reads_once, shared_prefix_attention
from rntp_kernels.tree_attention.style import PLAIN, Style, masked_attention


@dataclass(frozen=True)
class BranchGroup:
    """The B subtrees, padded to n tokens each, that hang at one point of a root.

    root: which root. prefix: [start, stop) of its tokens that they see. mask: bool
    [B, 1, m, prefix + n], for m queries of each subtree: its tokens, or some of them.
    """

    root: int
    prefix: tuple[int, int]
    mask: Tensor


@dataclass(frozen=True)
class Plan:
    """The stream cut into pieces: the roots, then the groups, each B·n rows.

    keys, queries: the rows of the pieces, which are the same where every token is a query. order:
    int64, where the pieces' outputs hold each query, in the order of the stream; None if they
    already are in it, without padding. window_masks: of each root, the mask of its window, bool
    [n, n]; None where no window is shorter than the root.
    """

    keys: "Pieces"
    queries: "Pieces"
    window_masks: tuple[Tensor | None, ...]
    groups: tuple[BranchGroup, ...]
    order: Tensor | None


@dataclass(frozen=True)
class Pieces:
    """sizes: rows of each piece. gather: int64 [sum of sizes], the row of the stream that each has
    (padding repeats one); None if the pieces lie in the stream one behind the other.
    """

    sizes: tuple[int, ...]
    gather: Tensor | None

    @classmethod
    def of(cls, rows: list[Tensor], stream: int) -> "Pieces":
        """Collect pieces of a stream; stream: its number of rows."""
        gather = torch.cat(rows)
        in_place = torch.equal(gather, torch.arange(stream))
        return cls(tuple(map(len, rows)), None if in_place else gather)

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        """Cut [1, heads, N, D] into a tensor a piece.

        One gather and one split for all of them: their backward is one pass over the stream each,
        where that of a slice a piece would fill the whole stream with zeros for every one.
        """
        gathered = x if self.gather is None else x.index_select(2, self.gather)
        return gathered.split(self.sizes, dim=2)

    def to(self, device: torch.device | str) -> "Pieces":
        """Copy to a device."""
        return Pieces(self.sizes, None if self.gather is None else self.gather.to(device))


def make_plan(layout: TreeLayout, queries_from: int = 0, window: int | None = None) -> Plan:
    """Group the segments of a layout into roots and the subtrees that hang at one point of them.

    queries_from: the first segment whose tokens are queries; those before it are keys alone.
    window: see `Style`.
    """
    roots = [s for s, parent in enumerate(layout.parents) if parent == ROOT]
    first = layout.offsets[queries_from]  # the first row that is a query
    keys = [_rows(layout, s) for s in roots]
    queries = [own[own >= first] for own in keys]
    real = [torch.ones(len(own), dtype=torch.bool) for own in queries]
    groups = []
    for (root, attach), subtrees in _subtrees(layout).items():
        own_rows, own_real, mask = _pad(layout, attach, list(subtrees.values()), window)
        # What lies before all of their windows need not be read.
        begin = 0 if window is None else max(0, attach - window + 1)
        mask = mask[..., begin:]
        # [B, n]. As many queries of every subtree: those beyond are any row, for nobody.
        is_query = own_real & (own_rows >= first)
        most = int(is_query.sum(dim=1).max())
        if not most:
            continue
        picked = is_query.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        keys.append(own_rows.flatten())
        queries.append(own_rows.gather(1, picked).clamp_min(first).flatten())
        real.append(is_query.gather(1, picked).flatten())
        mask = mask[torch.arange(len(mask))[:, None], :, picked].transpose(1, 2)
        groups.append(BranchGroup(roots.index(root), (begin, attach), mask))
    rows, places = torch.cat(queries), torch.cat(real).nonzero()[:, 0]
    order = places[torch.argsort(rows[places])]
    in_order = torch.equal(order, torch.arange(len(rows)))
    return Plan(
        keys=Pieces.of(keys, layout.num_tokens),
        queries=Pieces.of([own - first for own in queries], layout.num_tokens - first),
        window_masks=tuple(_window_mask(layout.lengths[s], window) for s in roots),
        groups=tuple(groups),
        order=None if in_order else order,
    )


def _subtrees(layout: TreeLayout) -> dict[tuple[int, int], dict[int, list[int]]]:
    """Map each point of a root, (root, tokens of it that are seen), to the subtrees that hang
    there: segments by the direct child of the root that they descend from."""
    home: list[tuple[int, int]] = []  # (root, attach) that each segment hangs from, in the end
    branch: list[int] = []  # the direct child of a root that each segment descends from
    found: dict[tuple[int, int], dict[int, list[int]]] = {}
    for segment, parent in enumerate(layout.parents):
        if parent == ROOT:
            home.append((segment, ROOT))
            branch.append(segment)
            continue
        is_child = layout.parents[parent] == ROOT
        home.append((parent, layout.attach[segment]) if is_child else home[parent])
        branch.append(segment if is_child else branch[parent])
        found.setdefault(home[segment], {}).setdefault(branch[segment], []).append(segment)
    return found


def segmented_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, style: Style = PLAIN
) -> Tensor:
    """Compute `dense_attention` in pieces: q [1, Hq, M, D], k, v [1, Hkv, N, D] -> [1, Hq, M, D].

    M: the queries, which are the last of the N tokens. The style's window is the plan's.

    On the CPU bfloat16 is computed in float32: more exact, and the library's float32 kernel is the
    faster one there (2 cores, 9 heads of 64, forward and backward: 26 ms against 76 ms).
    """
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()
    queries, keys, values = plan.queries.cut(q), plan.keys.cut(k), plan.keys.cut(v)
    out = [
        _causal(queries[i], keys[i], values[i], scale, mask, style)
        for i, mask in enumerate(plan.window_masks)
        if plan.queries.sizes[i]
    ]
    for i, group in enumerate(plan.groups, start=len(plan.window_masks)):
        seen_k, seen_v = (x[group.root][:, :, slice(*group.prefix)] for x in (keys, values))
        own = queries[i], keys[i], values[i]
        out.append(_attend(*own, seen_k, seen_v, group.mask, scale, style))
    packed = torch.cat(out, dim=2)
    return (packed if plan.order is None else packed.index_select(2, plan.order)).to(dtype)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, style: Style
) -> Tensor:
    """Attend inside a root; mask: of its window, or None."""
    if mask is None and style.scores_only:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    if mask is None:
        length = k.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool, device=k.device).tril()
    return masked_attention(q, k, v, mask, scale, style)


def _window_mask(length: int, window: int | None) -> Tensor | None:
    """Make the causal mask of a window, bool [length, length]; None where it does not matter."""
    if window is None or window >= length:
        return None
    return torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen_k: Tensor,
    seen_v: Tensor,
    mask: Tensor,
    scale: float,
    style: Style,
) -> Tensor:
    """Attend in one group: q [1, Hq, B·m, D], k and v [1, Hkv, B·n, D], the prefix
    [1, Hkv, prefix, D] -> [1, Hq, B·m, D]."""
    width = mask.shape[0]

    def branches(x: Tensor) -> Tensor:  # -> [B, heads, tokens, D]
        return x[0].unflatten(1, (width, -1)).transpose(0, 1)

    if reads_once(q, v, seen_k, style):
        seen, own = (seen_k, seen_v), (branches(k), branches(v))
        out = shared_prefix_attention(branches(q), own, seen, mask[..., seen_k.shape[2] :], scale)
        return out.transpose(0, 1).reshape(1, q.shape[1], -1, v.shape[3])

    def with_prefix(x: Tensor, seen: Tensor) -> Tensor:  # -> [B, heads, prefix + n, D]
        return torch.cat([seen.expand(width, -1, -1, -1), branches(x)], dim=2)

    out = masked_attention(
        branches(q), with_prefix(k, seen_k), with_prefix(v, seen_v), mask, scale, style
    )
    return out.transpose(0, 1).reshape(1, q.shape[1], -1, v.shape[3])


def _pad(
    layout: TreeLayout, attach: int, subtrees: list[list[int]], window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad the subtrees of a group to one length: their rows, int64 [B, n], which of them are real,
    and the mask."""
    longest = max(sum(layout.lengths[s] for s in subtree) for subtree in subtrees)
    rows, real, masks = [], [], []
    for subtree in subtrees:
        own = torch.cat([_rows(layout, s) for s in subtree])
        rows.append(F.pad(own, (0, longest - len(own)), value=int(own[-1])))
        real.append(torch.arange(longest) < len(own))
        # Padded queries see themselves, so that their softmax is finite; nobody sees them.
        among = torch.eye(longest, dtype=torch.bool)
        local = _subtree_layout(layout, subtree)
        among[: len(own), : len(own)] = dense_mask(local, window)
        before = torch.ones(longest, attach, dtype=torch.bool)
        if window is not None:
            position = attach + local.position_ids()
            before[: len(own)] = position[:, None] - torch.arange(attach) < window
        masks.append(torch.cat([before, among], dim=1))
    return torch.stack(rows), torch.stack(real), torch.stack(masks)[:, None]


def _rows(layout: TreeLayout, segment: int) -> Tensor:
    """List a segment's rows, int64."""
    return torch.arange(layout.offsets[segment], layout.offsets[segment + 1])


def _subtree_layout(layout: TreeLayout, subtree: list[int]) -> TreeLayout:
    """Make the subtree a tree of its own: its top becomes a root."""
    local = {segment: i for i, segment in enumerate(subtree)}
    return TreeLayout(
        lengths=tuple(layout.lengths[s] for s in subtree),
        parents=tuple(local.get(layout.parents[s], ROOT) for s in subtree),
        attach=tuple(layout.attach[s] if layout.parents[s] in local else 0 for s in subtree),
    )
