"""What the Triton kernels loop over: made once a layout on the host, shared by all layers.

Blocks never lie across two strands, so a block of queries has one short list of rows it sees, and
a block of keys is seen by few runs of rows: teeth side by side that see all of it are one run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.strands import Rows, Strand, strands

# Rows that one program of the keys' gradient goes over, times the heads that share keys: the first
# blocks of a page are seen by all of its thoughts, and would keep the device waiting.
ROWS_PER_PIECE = 2048


@dataclass(frozen=True)
class Tables:
    """int32 tables, one entry a row; all on one device.

    queries [Q, 5]: a block of queries: rows [first, stop); from which key on it is causal (all
    keys of its strand before that are in `seen`); its part [begin, end) of `seen`.
    seen [R, 2]: rows [start, stop) that a block sees whole. Blocks with most keys come first.
    keys [W, 5]: a piece of the work on a block of keys [first, stop): its part [begin, end) of
    `seers`, and the slot for its share of the gradient (-1: it is all of it).
    seers [S, 3]: rows [start, stop) that see the block's keys before a limit, and before
    themselves.
    shared [B, 4]: blocks of keys [first, stop) whose gradient is the sum over slots [begin, end).
    positions [N, 1]: position of each row, and window, where keys are seen only from so near: what
    is in the tables is then more than what is seen, and the kernels look. Else empty, and None.
    """

    queries: Tensor
    seen: Tensor
    keys: Tensor
    seers: Tensor
    shared: Tensor
    num_slots: int
    positions: Tensor
    window: int | None = None

    def to(self, device: torch.device | str) -> "Tables":
        """On another device, by one copy."""
        tables = (self.queries, self.seen, self.keys, self.seers, self.shared, self.positions)
        # Triton compiles once more for addresses that are no multiples of 16 bytes.
        sizes = [-(-table.numel() // 4) * 4 for table in tables]
        padded = [
            F.pad(table.flatten(), (0, size - table.numel()))
            for table, size in zip(tables, sizes, strict=True)
        ]
        parts = torch.cat(padded).to(device).split(sizes)
        queries, seen, keys, seers, shared, positions = (
            part[: table.numel()].view(table.shape)
            for part, table in zip(parts, tables, strict=True)
        )
        of_keys = queries, seen, keys, seers, shared
        return Tables(*of_keys, self.num_slots, positions, self.window)


def make_tables(
    layout: TreeLayout,
    *,
    queries_per_block: int,
    keys_per_block: int,
    rows_per_piece: int = ROWS_PER_PIECE,
    window: int | None = None,
) -> Tables:
    """Tables on the CPU for blocks of these sizes. window: see `Style`."""
    of_layout = strands(layout)
    near = _Near(layout.position_ids().tolist(), window)
    queries, seen = _query_blocks(of_layout, queries_per_block, keys_per_block, near)
    keys, seers, shared, num_slots = _key_blocks(of_layout, keys_per_block, rows_per_piece, near)
    return Tables(
        queries=_table(queries, 5),
        seen=_table(seen, 2),
        keys=_table(keys, 5),
        seers=_table(seers, 3),
        shared=_table(shared, 4),
        num_slots=num_slots,
        positions=_table([] if window is None else [(p,) for p in near.position], 1),
        window=window,
    )


@dataclass(frozen=True)
class _Near:
    """What lies near enough to be seen, by position of each row; all, where there is no window."""

    position: list[int]
    window: int | None

    def keys(self, runs: Iterable[Rows], row: int) -> list[Rows]:
        """Of runs of keys, whose positions rise, what this row and those behind it may see."""
        if self.window is None:
            return list(runs)
        lowest = self.position[row] - self.window + 1
        cut = [(a + max(0, lowest - self.position[a]), b) for a, b in runs]
        return [(a, b) for a, b in cut if a < b]

    def rows(self, start: int, stop: int, key: int) -> int:
        """Of rows whose positions rise, where those end that may see this key or one before it."""
        if self.window is None:
            return stop
        return min(stop, start + max(0, self.position[key] + self.window - self.position[start]))


def _query_blocks(
    of_layout: Iterable[Strand], size: int, keys: int, near: _Near
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    blocks: list[tuple[int, ...]] = []
    seen: list[tuple[int, ...]] = []
    work: list[int] = []
    for strand in of_layout:
        for first in range(strand.start, strand.stop, size):
            # Keys of the strand in whole tiles before the block: no mask is needed for them.
            causal = first - (first - strand.start) % keys
            begin = len(seen)
            before = ((strand.start, causal),) if causal > strand.start else ()
            visible = near.keys((*strand.seen, *before), first)
            seen += visible
            stop = min(first + size, strand.stop)
            blocks.append((first, stop, causal, begin, len(seen)))
            work.append(sum(b - a for a, b in visible) + stop - causal)
    order = sorted(range(len(blocks)), key=lambda i: -work[i])
    return [blocks[i] for i in order], seen


def _key_blocks(
    of_layout: tuple[Strand, ...], size: int, rows_per_piece: int, near: _Near
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[tuple[int, ...]], int]:
    blocks: list[tuple[int, int]] = []
    runs: list[list[tuple[int, int, int]]] = []
    for strand in of_layout:
        for first in range(strand.start, strand.stop, size):
            stop = min(first + size, strand.stop)
            blocks.append((first, stop))
            own = [(first, stop, stop)]  # the diagonal, apart: the rest needs no mask
            end = near.rows(stop, strand.stop, stop - 1) if stop < strand.stop else stop
            if stop < end:
                own.append((stop, end, stop))
            runs.append(own)
    block_of = [b for b, (first, stop) in enumerate(blocks) for _ in range(stop - first)]
    for strand in of_layout:
        for start, stop in strand.seen:
            for block in range(block_of[start], block_of[stop - 1] + 1):
                limit = min(stop, blocks[block][1])
                end = near.rows(strand.start, strand.stop, limit - 1)
                if end == strand.start:
                    continue
                last = runs[block][-1]
                # The diagonal keeps its mask, so nothing is added to it.
                if last[1] == strand.start and last[2] == limit and last[0] >= blocks[block][1]:
                    runs[block][-1] = (last[0], end, limit)
                else:
                    runs[block].append((strand.start, end, limit))

    pieces: list[tuple[int, ...]] = []
    seers: list[tuple[int, ...]] = []
    shared: list[tuple[int, ...]] = []
    work: list[int] = []
    slots = 0
    for (first, stop), own in zip(blocks, runs, strict=True):
        parts = _split(own, rows_per_piece)
        if len(parts) > 1:
            shared.append((first, stop, slots, slots + len(parts)))
        for part in parts:
            begin = len(seers)
            seers += part
            slot = -1
            if len(parts) > 1:
                slot, slots = slots, slots + 1
            pieces.append((first, stop, begin, len(seers), slot))
            work.append(sum(b - a for a, b, _ in part))
    order = sorted(range(len(pieces)), key=lambda i: -work[i])
    return [pieces[i] for i in order], seers, shared, slots


def _split(
    runs: list[tuple[int, int, int]], rows_per_piece: int
) -> list[list[tuple[int, int, int]]]:
    """The runs in pieces of about so many rows, in order."""
    parts: list[list[tuple[int, int, int]]] = [[]]
    room = rows_per_piece
    for start, stop, limit in runs:
        while start < stop:
            if room == 0:
                parts.append([])
                room = rows_per_piece
            taken = min(stop - start, room)
            parts[-1].append((start, start + taken, limit))
            start, room = start + taken, room - taken
    return parts


def _table(entries: list[tuple[int, ...]], width: int) -> Tensor:
    return torch.tensor(entries, dtype=torch.int32).view(-1, width)
