"""What the Triton kernels loop over: made once a layout on the host, shared by all layers.

Blocks never lie across two chains, so a block of queries has one short list of rows it sees, and
a block of keys is seen by few runs of rows: branches side by side that see all of it are one run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rntp_kernels.tree_attention.chains import Chain, Rows, chains
from rntp_kernels.tree_attention.layout import TreeLayout

# Rows that one program of the keys' gradient goes over, times the heads that share keys: the first
# blocks of a page are seen by all of its thoughts, and would keep the device waiting.
ROWS_PER_PIECE = 2048


@dataclass(frozen=True)
class Tables:
    """int32 tables, one entry a row; all on one device.

    query_blocks [Q, 5]: a block of queries: rows [first, stop); from which key on it is causal (all
    keys of its chain before that are in `key_runs`); its part [begin, end) of `key_runs`.
    key_runs [R, 2]: rows [start, stop) that a block sees whole. Blocks with most keys come first.
    key_pieces [W, 5]: a piece of the work on a block of keys [first, stop): its part [begin, end)
    of `query_runs`, and the slot for its share of the gradient (-1: it is all of it).
    query_runs [S, 3]: rows [start, stop) that see the block's keys before a limit, and before
    themselves.
    shared_keys [B, 4]: blocks of keys [first, stop) whose gradient is the sum over slots
    [begin, end).
    positions [N, 1]: position of each row, and window, where keys are seen only from so near: what
    is in the tables is then more than what is seen, and the kernels look. Else empty, and None.
    """

    query_blocks: Tensor
    key_runs: Tensor
    key_pieces: Tensor
    query_runs: Tensor
    shared_keys: Tensor
    num_slots: int
    positions: Tensor
    window: int | None = None

    def to(self, device: torch.device | str) -> "Tables":
        """Copy to a device, all tables at once."""
        names = "query_blocks", "key_runs", "key_pieces", "query_runs", "shared_keys", "positions"
        tables = [getattr(self, name) for name in names]
        # Triton compiles once more for addresses that are no multiples of 16 bytes.
        sizes = [-(-table.numel() // 4) * 4 for table in tables]
        padded = [
            F.pad(table.flatten(), (0, size - table.numel()))
            for table, size in zip(tables, sizes, strict=True)
        ]
        parts = torch.cat(padded).to(device).split(sizes)
        moved = [
            part[: table.numel()].view(table.shape)
            for part, table in zip(parts, tables, strict=True)
        ]
        return replace(self, **dict(zip(names, moved, strict=True)))


def make_tables(
    layout: TreeLayout,
    *,
    queries_per_block: int,
    keys_per_block: int,
    rows_per_piece: int = ROWS_PER_PIECE,
    window: int | None = None,
) -> Tables:
    """Make tables on the CPU for blocks of these sizes. window: see `Style`."""
    found = chains(layout)
    near = _Near(layout.position_ids().tolist(), window)
    query_blocks, key_runs = _query_blocks(found, queries_per_block, keys_per_block, near)
    pieces, query_runs, shared, num_slots = _key_blocks(found, keys_per_block, rows_per_piece, near)
    return Tables(
        query_blocks=_table(query_blocks, 5),
        key_runs=_table(key_runs, 2),
        key_pieces=_table(pieces, 5),
        query_runs=_table(query_runs, 3),
        shared_keys=_table(shared, 4),
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
        """Cut runs of keys, whose positions rise, to what this row and those behind it may see."""
        if self.window is None:
            return list(runs)
        lowest = self.position[row] - self.window + 1
        cut = [(a + max(0, lowest - self.position[a]), b) for a, b in runs]
        return [(a, b) for a, b in cut if a < b]

    def rows(self, start: int, stop: int, key: int) -> int:
        """Find where, among rows whose positions rise, those end that may see this key or one
        before it."""
        if self.window is None:
            return stop
        return min(stop, start + max(0, self.position[key] + self.window - self.position[start]))


def _query_blocks(
    layout_chains: Iterable[Chain], size: int, keys: int, near: _Near
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """List blocks of queries, those with most work first, and the runs of keys that they see."""
    blocks: list[tuple[int, ...]] = []
    key_runs: list[tuple[int, ...]] = []
    work: list[int] = []
    for chain in layout_chains:
        for first in range(chain.start, chain.stop, size):
            # Keys of the chain in whole tiles before the block: no mask is needed for them.
            causal = first - (first - chain.start) % keys
            begin = len(key_runs)
            before = ((chain.start, causal),) if causal > chain.start else ()
            visible = near.keys((*chain.seen, *before), first)
            key_runs += visible
            stop = min(first + size, chain.stop)
            blocks.append((first, stop, causal, begin, len(key_runs)))
            work.append(sum(b - a for a, b in visible) + stop - causal)
    order = sorted(range(len(blocks)), key=lambda i: -work[i])
    return [blocks[i] for i in order], key_runs


def _runs_of_queries(
    layout_chains: tuple[Chain, ...], size: int, near: _Near
) -> tuple[list[tuple[int, int]], list[list[tuple[int, int, int]]]]:
    """List blocks of keys, and for each the runs of rows that see it: (start, stop, limit)."""
    blocks: list[tuple[int, int]] = []
    runs: list[list[tuple[int, int, int]]] = []
    for chain in layout_chains:
        for first in range(chain.start, chain.stop, size):
            stop = min(first + size, chain.stop)
            blocks.append((first, stop))
            own = [(first, stop, stop)]  # the diagonal, apart: the rest needs no mask
            end = near.rows(stop, chain.stop, stop - 1) if stop < chain.stop else stop
            if stop < end:
                own.append((stop, end, stop))
            runs.append(own)
    block_of = [b for b, (first, stop) in enumerate(blocks) for _ in range(stop - first)]
    for chain in layout_chains:
        for start, stop in chain.seen:
            for block in range(block_of[start], block_of[stop - 1] + 1):
                limit = min(stop, blocks[block][1])
                end = near.rows(chain.start, chain.stop, limit - 1)
                if end == chain.start:
                    continue
                last = runs[block][-1]
                # The diagonal keeps its mask, so nothing is added to it.
                if last[1] == chain.start and last[2] == limit and last[0] >= blocks[block][1]:
                    runs[block][-1] = (last[0], end, limit)
                else:
                    runs[block].append((chain.start, end, limit))
    return blocks, runs


def _key_blocks(
    layout_chains: tuple[Chain, ...], size: int, rows_per_piece: int, near: _Near
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[tuple[int, ...]], int]:
    """List pieces of the work on blocks of keys, those with most first; the runs of queries that
    see them; blocks whose gradient is a sum; and the number of slots for its terms."""
    blocks, runs = _runs_of_queries(layout_chains, size, near)
    pieces: list[tuple[int, ...]] = []
    query_runs: list[tuple[int, ...]] = []
    shared: list[tuple[int, ...]] = []
    work: list[int] = []
    slots = 0
    for (first, stop), own in zip(blocks, runs, strict=True):
        parts = _split(own, rows_per_piece)
        if len(parts) > 1:
            shared.append((first, stop, slots, slots + len(parts)))
        for part in parts:
            begin = len(query_runs)
            query_runs += part
            slot = -1
            if len(parts) > 1:
                slot, slots = slots, slots + 1
            pieces.append((first, stop, begin, len(query_runs), slot))
            work.append(sum(b - a for a, b, _ in part))
    order = sorted(range(len(pieces)), key=lambda i: -work[i])
    return [pieces[i] for i in order], query_runs, shared, slots


def _split(
    runs: list[tuple[int, int, int]], rows_per_piece: int
) -> list[list[tuple[int, int, int]]]:
    """Cut runs into pieces of about so many rows, in order."""
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
    """Make an int32 table [entries, width]."""
    return torch.tensor(entries, dtype=torch.int32).view(-1, width)
