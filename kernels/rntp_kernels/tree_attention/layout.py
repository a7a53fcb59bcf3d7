"""The shape of a token forest: segments, where each hangs, and what follows from that."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ROOT = -1


@dataclass(frozen=True)
class TreeLayout:
    """Segments of a packed token stream, in the order in which they lie there.

    A token attends to itself and the earlier tokens of its segment, to the first `attach` tokens
    of the segment's parent, and to whatever the parent's first token sees of the ancestors above.

    lengths: tokens of each segment, >= 1. parents: index of the parent segment (smaller than the
    segment's own index), or ROOT. attach: how many of the parent's tokens are visible, 0 … length
    of the parent; 0 for a root.

    Raises ValueError if the three do not describe a forest.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    attach: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.lengths) == len(self.parents) == len(self.attach):
            raise ValueError("lengths, parents and attach must have one entry a segment")
        for i, (length, parent, attach) in enumerate(
            zip(self.lengths, self.parents, self.attach, strict=True)
        ):
            if length < 1:
                raise ValueError(f"segment {i} is empty")
            if not ROOT <= parent < i:
                raise ValueError(f"segment {i} has parent {parent}; parents come first")
            visible = self.lengths[parent] if parent != ROOT else 0
            if not 0 <= attach <= visible:
                raise ValueError(f"segment {i} sees {attach} of its parent's {visible} tokens")

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Row of each segment's first token, and the total at the end."""
        total, rows = 0, [0]
        for length in self.lengths:
            total += length
            rows.append(total)
        return tuple(rows)

    def until(self, segment: int) -> "TreeLayout":
        """Keep the segments before this one, which hang at none of the others."""
        return TreeLayout(self.lengths[:segment], self.parents[:segment], self.attach[:segment])

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Position id of each segment's first token: that of the unshared sequence."""
        starts: list[int] = []
        for parent, attach in zip(self.parents, self.attach, strict=True):
            starts.append(0 if parent == ROOT else starts[parent] + attach)
        return tuple(starts)

    def position_ids(self) -> Tensor:
        """List position ids, int64 [N]; a branch goes on where it hangs, so that rotary embeddings
        are unchanged."""
        return torch.cat(
            [
                torch.arange(start, start + length)
                for start, length in zip(self.starts, self.lengths, strict=True)
            ]
        )

    def lineage(self, segment: int) -> Iterator[tuple[int, int]]:
        """List ancestors, nearest first, with how many of their tokens the segment sees."""
        while self.parents[segment] != ROOT:
            yield self.parents[segment], self.attach[segment]
            segment = self.parents[segment]

    def unshared(self, segment: int) -> Tensor:
        """List the rows, int64, of the plain sequence that ends with the segment."""
        pieces = [(segment, self.lengths[segment]), *self.lineage(segment)]
        return torch.cat(
            [torch.arange(self.offsets[s], self.offsets[s] + n) for s, n in reversed(pieces)]
        )
