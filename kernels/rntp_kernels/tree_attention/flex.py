"""Tree attention by PyTorch's FlexAttention, with tables of blocks made from the layout.

The stream is padded to one of few lengths, so that steps whose thoughts differ in length run what
is compiled already. Padding sees itself alone, and nobody sees it.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.strands import strands

BLOCK = 128
# Lengths that may be compiled in one process; PyTorch's own limit is 8.
_COMPILED = 64


class FlexTree:
    """Callable `(q, k, v, scale) -> out`, as `dense_attention`. No gradients on the CPU, where
    PyTorch has none."""

    def __init__(self, layout: TreeLayout, device: torch.device) -> None:
        self._rows = layout.num_tokens
        self._padding = bucket(self._rows) - self._rows
        self._mask = block_mask(layout, self._rows + self._padding, device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (F.pad(x, (0, 0, 0, self._padding)) for x in (q, k, v))
        run = _compiled() if q.is_cuda else flex_attention
        with torch._dynamo.config.patch(recompile_limit=_COMPILED):
            out = run(q, k, v, block_mask=self._mask, scale=scale, enable_gqa=True)
        return out[:, :, : self._rows]


def bucket(rows: int) -> int:
    """The length that so many rows are padded to: four lengths between powers of two."""
    step = max(BLOCK, 2 ** (rows.bit_length() - 3))
    return -(-rows // step) * step


def block_mask(layout: TreeLayout, length: int, device: torch.device) -> BlockMask:
    """The layout's mask for a stream padded to `length`, a multiple of BLOCK: which blocks are
    seen in part, and which whole, counted strand by strand rather than pair by pair."""
    first, last = (x.to(device) for x in ancestry(layout, length))

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (first[key] <= first[row]) & (first[row] < last[key])

    seen = visible_pairs(layout, length)
    full = seen == BLOCK * BLOCK
    part = (seen > 0) & ~full
    part_numbers, part_blocks = _table(part, device)
    full_numbers, full_blocks = _table(full, device)
    mask = BlockMask.from_kv_blocks(
        part_numbers,
        part_blocks,
        full_numbers,
        full_blocks,
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )
    assert isinstance(mask, BlockMask)
    return mask


def ancestry(layout: TreeLayout, length: int) -> tuple[Tensor, Tensor]:
    """int32 [length] each: a row sees a key if first[key] <= first[row] < last[key].

    Every token hangs at the last one that it sees besides itself. Numbered depth first, what hangs
    at a token, directly or not, is one interval; padding has intervals of its own.
    """
    children: dict[int, list[tuple[int, int]]] = {}  # segment -> (attach, child)
    roots = []
    for segment in range(len(layout.lengths)):
        # Who sees nothing of a parent hangs where the parent does.
        at = next(((a, n) for a, n in layout.lineage(segment) if n), None)
        if at is None:
            roots.append(segment)
        else:
            children.setdefault(at[0], []).append((at[1], segment))
    size = [0] * len(layout.lengths)  # tokens of a segment and of all that hangs below it
    for segment in reversed(range(len(layout.lengths))):
        size[segment] = layout.lengths[segment]
        size[segment] += sum(size[child] for _, child in children.get(segment, []))

    first = torch.arange(length)
    last = first + 1
    starts = {}
    total = 0
    for root in roots:
        starts[root] = total
        total += size[root]
    for segment, count in enumerate(layout.lengths):
        before = torch.zeros(count + 1, dtype=torch.int64)
        for attach, child in children.get(segment, []):
            before[attach] += size[child]
        # Children that hang at token j come after it and before token j + 1.
        ahead = before[:-1].cumsum(0)
        own = starts[segment] + torch.arange(count) + ahead
        rows = slice(layout.offsets[segment], layout.offsets[segment + 1])
        first[rows], last[rows] = own, starts[segment] + size[segment]
        taken: dict[int, int] = {}
        for attach, child in children.get(segment, []):
            starts[child] = int(own[attach - 1]) + 1 + taken.get(attach, 0)
            taken[attach] = taken.get(attach, 0) + size[child]
    return first.int(), last.int()


def visible_pairs(layout: TreeLayout, length: int) -> Tensor:
    """int64 [length / BLOCK, length / BLOCK]: visible pairs of each block of rows and of keys."""
    blocks = length // BLOCK
    pairs = torch.zeros(blocks, blocks, dtype=torch.int64)
    edges = torch.arange(blocks + 1) * BLOCK

    def keys_in_blocks(start: int, stop: int) -> Tensor:
        return edges.clamp(start, stop).diff()

    for strand in strands(layout):
        outside = sum(
            (keys_in_blocks(*seen) for seen in strand.seen), torch.zeros(blocks, dtype=torch.int64)
        )
        for block in range(strand.start // BLOCK, (strand.stop - 1) // BLOCK + 1):
            begin = block * BLOCK
            first, stop = max(strand.start, begin), min(strand.stop, begin + BLOCK)
            pairs[block] += (stop - first) * outside
            if strand.start < begin:
                pairs[block] += (stop - first) * keys_in_blocks(strand.start, begin)
            # Inside the block each row sees one key more than the row before.
            ahead = first - max(strand.start, begin)
            pairs[block, block] += sum(range(ahead + 1, ahead + stop - first + 1))
    padding = keys_in_blocks(layout.num_tokens, length)
    pairs.diagonal().add_(padding)
    return pairs


def _table(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of rows has, int32 [1, 1, n], and these first of all."""
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    number = blocks.sum(1, dtype=torch.int32)
    return number[None, None].to(device), order.int()[None, None].to(device)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
