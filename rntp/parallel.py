"""Cutting a step into pieces that fit: microbatches of whole rollouts."""

from collections.abc import Sequence

from rntp.tree import BRANCHES, Reads, tree_tokens
from rntp.types import Rollout


def microbatches(
    rollouts: Sequence[Rollout], *, tokens: int, horizon: int, reads: Reads = BRANCHES
) -> list[tuple[Rollout, ...]]:
    """Consecutive rollouts, `tokens` tree tokens at most; one too large for that goes alone."""
    pieces: list[tuple[Rollout, ...]] = []
    current: list[Rollout] = []
    size = 0
    for rollout in rollouts:
        own = tree_tokens(rollout, horizon, reads)
        if current and size + own > tokens:
            pieces.append(tuple(current))
            current, size = [], 0
        current.append(rollout)
        size += own
    return [*pieces, tuple(current)] if current else pieces
