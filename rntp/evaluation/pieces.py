"""Memories by fixed rules: a piece of what a reading window has lost. Pure functions of token ids.

They are arms that a learned memory is compared with, and what a model is taught to read before it
writes any (`rntp.traces.memories`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.model.reading import window_at, window_start
from rntp.rng import uniform
from rntp.tools.okapi import okapi
from rntp.types import Rollout, Thought

QUERY_TOKENS = 32  # of the window's end, that a piece is looked for with

# (lost part, the window, what a piece has, a uniform draw) -> ids of the memory.
Rule = Callable[[Tensor, Tensor, int, float], Tensor]


def pieces(lost: Tensor, tokens: int) -> list[Tensor]:
    """Cut what is lost into pieces of `tokens` tokens, int64 each, every one half over the next;
    the last ends where it ends. A shorter text is one piece."""
    last = max(len(lost) - tokens, 0)
    starts = [*range(0, last, max(tokens // 2, 1)), last]
    return [lost[start : start + tokens] for start in starts]


def bm25(found: Sequence[Tensor], query: Tensor) -> list[float]:
    """Score pieces of one length by the tokens that they share with a query; see
    `rntp.tools.okapi`."""
    counts = [Counter(piece.tolist()) for piece in found]
    return okapi(counts, query.tolist())


def first_tokens(lost: Tensor, window: Tensor, tokens: int, draw: float) -> Tensor:
    """Take the page's first tokens."""
    return lost[:tokens]


def last_piece(lost: Tensor, window: Tensor, tokens: int, draw: float) -> Tensor:
    """Take the last tokens before the window."""
    return lost[max(len(lost) - tokens, 0) :]


def random_piece(lost: Tensor, window: Tensor, tokens: int, draw: float) -> Tensor:
    """Take any piece, each as likely."""
    found = pieces(lost, tokens)
    return found[int(draw * len(found))]


def bm25_piece(lost: Tensor, window: Tensor, tokens: int, draw: float) -> Tensor:
    """Take the piece that a search with the window's end finds; where none shares a token, the
    first."""
    found = pieces(lost, tokens)
    scores = bm25(found, window[-QUERY_TOKENS:] if len(window) else window)
    return found[scores.index(max(scores))]


RULES: dict[str, Rule] = {
    f.__name__: f for f in (first_tokens, last_piece, random_piece, bm25_piece)
}


def written(ids: Tensor) -> Thought:
    """Make a thought that nobody sampled; its close marker is appended."""
    return Thought(ids.clone(), torch.zeros(len(ids)), closed=False)


def lost_and_window(rollout: Rollout, position: int, window: int) -> tuple[Tensor, Tensor]:
    """Split what stands before a position into what a reading window loses and what it keeps. Of a
    page that is read piece by piece all pieces before are lost, and no memory is among them."""
    context = rollout.context
    if not len(context.left):
        first = window_start(rollout, position, window)
        return context.token_ids[:first], context.token_ids[first:position]
    piece = context.token_ids[context.inserted : position]
    kept = window_at(rollout, position, window)
    page = torch.cat([context.left, piece])
    return page[: len(page) - len(kept)], kept


def by_rule(
    rule: Rule,
    window: int,
    tokens: int,
    seed: int,
    rollouts: Sequence[Rollout],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Rollout]:
    """Put one memory by a rule in the place of the thoughts at each position."""

    def memory(rollout: Rollout, position: int) -> Thought:
        draw = uniform(seed, "piece", rollout.context.ordinal, position).item()
        return written(rule(*lost_and_window(rollout, position, window), tokens, draw))

    return [
        replace(r, thoughts=tuple((memory(r, position),) for position in r.positions))
        for r in rollouts
    ]


def rule_controls(
    config: Config,
) -> dict[str, Callable[[Sequence[Rollout], PreTrainedTokenizerBase], list[Rollout]]]:
    """Make the rules controls of an evaluation: as long as thoughts may be."""
    if config.reading.window is None:
        return {}
    window, tokens = config.reading.window, config.thought.thought_tokens
    return {
        name: partial(by_rule, rule, window, tokens, config.run.seed)
        for name, rule in RULES.items()
    }
