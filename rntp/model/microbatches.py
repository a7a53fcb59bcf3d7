"""Cutting a step into pieces that fit: microbatches of whole rollouts."""

from collections.abc import Sequence

from rntp.model.reading import BRANCHES, LossReads
from rntp.model.tree_sizes import plain_tokens, tree_tokens
from rntp.types import Rollout

Batch = tuple[Rollout, ...]


def microbatches(
    rollouts: Sequence[Rollout],
    *,
    tokens: int,
    horizon: int,
    reads: LossReads = BRANCHES,
    shares: bool = True,
) -> list[Batch]:
    """Consecutive rollouts, `tokens` tokens at most; one too large for that goes alone.

    shares: tokens are those of trees, else those of a sequence for every branch.
    """
    pieces: list[Batch] = []
    current: list[Rollout] = []
    size = 0
    for rollout in rollouts:
        if shares:
            own = tree_tokens(rollout, horizon, reads)
        else:
            own, _ = plain_tokens(rollout, horizon, reads)
        if current and size + own > tokens:
            pieces.append(tuple(current))
            current, size = [], 0
        current.append(rollout)
        size += own
    return [*pieces, tuple(current)] if current else pieces
