"""Which ordinals which rank reads: the order of a run without its model."""

from collections.abc import Sequence
from typing import Any


def rank_share(ordinals: Sequence[int], rank: int, world: int) -> Sequence[int]:
    """A rank's contiguous piece of a step; those of all ranks, in order, are the whole."""
    first, end = (len(ordinals) * n // world for n in (rank, rank + 1))
    return ordinals[first:end]


def step_ordinals(step: int, docs_per_step: int) -> range:
    """The ordinals of step 1, 2, …: the same for any number of ranks."""
    return range((step - 1) * docs_per_step, step * docs_per_step)


def simulate(steps: Sequence[int], docs_per_step: int, world: int) -> list[dict[str, Any]]:
    """One row a step and rank: step, rank, ordinals."""
    return [
        {"step": step, "rank": rank, "ordinals": list(rank_share(ordinals, rank, world))}
        for step in steps
        for ordinals in [step_ordinals(step, docs_per_step)]
        for rank in range(world)
    ]
