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


def window_start(rollout: Rollout, position: int, window: int) -> int:
    """Find the first token of a context that is read at a position, its index: `window` tokens of
    the page before it, fewer where the page begins there, with the earlier thoughts among them."""
    context = rollout.context
    first = max(position - context.inserted - window, 0)
    return first + sum(len(s.token_ids) for s in context.seen if s.position <= first)


def read_behind(rollout: Rollout, position: int, window: int, horizon: int) -> Tensor:
    """Cut out the window at a position and the continuation without its last token, which predicts
    nothing: int64 [w + H - 1]."""
    first = window_start(rollout, position, window)
    return rollout.context.token_ids[first : position + horizon - 1]


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
        START_TOKENS + position - window_start(rollout, position, window) + horizon - 1
        for position in rollout.positions
    ]
