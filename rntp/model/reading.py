"""What a loss reads, and behind what: all of the context, or a window of it and a memory.

A thought is drawn in sight of the whole context. With a window of w tokens it is then read as a
sequence of its own,

    start · <think> memory </think> · x[p-w:p] · x[p:p+H-1]

and the baseline is the same without the memory. Keys and values that were computed in sight of what
is lost would carry it along, so both are roots of the forest: token ids are all that they have. The
start token stands before both, so that a window of 0 tokens has something that predicts x[p], and
so that the two differ by the memory alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rntp.types import Rollout

START_TOKENS = 1


@dataclass(frozen=True)
class LossReads:
    """What a loss reads besides the sampled tokens.

    context: plain next-token prediction on the pages. continuation: continuations with thoughts;
    where it does not, they are predicted all the same, for the rewards, without gradients. window:
    tokens of the page that a continuation is read behind; None: all (see `rntp.model.reading`).
    """

    context: bool = False
    continuation: bool = True
    window: int | None = None


BRANCHES = LossReads()


def first_read(rollout: Rollout, position: int, window: int) -> int:
    """Find the first token of the page that is read at a position, its index in the page: `window`
    tokens before it, fewer where the page begins there."""
    return max(position - rollout.context.shift - window, 0)


def window_start(rollout: Rollout, position: int, window: int) -> int:
    """Find the same token in the context, its index there; below 0 by so many tokens as it stands
    before all of the context, where a chain of memories has left it behind. Earlier thoughts that
    stand among the window's tokens come along."""
    context, first = rollout.context, first_read(rollout, position, window)
    before = sum(len(s.token_ids) for s in context.seen if s.position <= first)
    return first - len(context.left) + before


def window_at(rollout: Rollout, position: int, window: int) -> Tensor:
    """Cut out what is read of the page before a position: int64 [w]."""
    context, start = rollout.context, window_start(rollout, position, window)
    if start >= 0:
        return context.token_ids[start:position]
    # The memory of the piece before stands between what is left behind and the piece.
    return torch.cat([context.left[start:], context.token_ids[context.inserted : position]])


def read_behind(rollout: Rollout, position: int, window: int, horizon: int) -> Tensor:
    """Put the window at a position and the continuation without its last token, which predicts
    nothing, together: int64 [w + H - 1]."""
    behind = rollout.context.token_ids[position : position + horizon - 1]
    return torch.cat([window_at(rollout, position, window), behind])


def bare_readings(
    rollouts: Sequence[Rollout], window: int, horizon: int, start_id: int
) -> Iterator[Tensor]:
    """List the readings without a memory, position by position: int64 [1 + w + H - 1] each. Their
    last H rows predict the continuation."""
    for rollout in rollouts:
        for position in rollout.positions:
            behind = read_behind(rollout, position, window, horizon)
            yield torch.cat([behind.new_tensor([start_id]), behind])


def bare_lengths(rollout: Rollout, window: int, horizon: int) -> list[int]:
    """Count the tokens of the readings without a memory, position by position."""
    return [
        START_TOKENS + len(window_at(rollout, position, window)) + horizon - 1
        for position in rollout.positions
    ]
