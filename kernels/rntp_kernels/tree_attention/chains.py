"""A layout as chains: pieces of the stream that are causal inside and see fixed rows outside."""

from dataclasses import dataclass

from rntp_kernels.tree_attention.layout import ROOT, TreeLayout

Rows = tuple[int, int]  # [start, stop) of the stream


@dataclass(frozen=True)
class Chain:
    """Rows [start, stop): each sees the chain's rows up to itself, and all rows of `seen`.

    seen: rows of ancestors, in the order of the stream, not empty, apart from each other; all of
    them before `start`.
    """

    start: int
    stop: int
    seen: tuple[Rows, ...]


def chains(layout: TreeLayout) -> tuple[Chain, ...]:
    """Cut the stream into chains.

    A segment that goes on where the one before it ends (a continuation behind its thought) belongs
    to the same chain: who sees whom is that of one longer segment.
    """
    found: list[Chain] = []
    for segment, (parent, attach) in enumerate(zip(layout.parents, layout.attach, strict=True)):
        start, stop = layout.offsets[segment], layout.offsets[segment + 1]
        goes_on = parent != ROOT and parent == segment - 1 and attach == layout.lengths[parent]
        if goes_on:
            found[-1] = Chain(found[-1].start, stop, found[-1].seen)
        else:
            found.append(Chain(start, stop, _seen(layout, segment)))
    return tuple(found)


def _seen(layout: TreeLayout, segment: int) -> tuple[Rows, ...]:
    ranges: list[Rows] = []
    for ancestor, visible in reversed(list(layout.lineage(segment))):
        start = layout.offsets[ancestor]
        if not visible:
            continue
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], start + visible)
        else:
            ranges.append((start, start + visible))
    return tuple(ranges)
