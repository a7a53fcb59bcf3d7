"""Memories carried through a page that is read piece by piece, so that no context grows with it.

The page is cut into pieces of W tokens. At the end of each piece the policy writes a memory, from
the memory before and the piece; the next piece is read behind it:

    1st link   x[0:W]                           ─ G memories, judged by x[W:W+H]
    2nd link   start <think> m </think> x[W:2W] ─ G memories, judged by x[2W:2W+H]

m is one of the memories of the link before, drawn by the counter. In training the memory before,
kept as it is (at the first link an empty one), is the last member of every group: it is judged like
the others and may be the one that goes on, and nothing of it was drawn, so that it has no policy
gradient. With a horizon above W a memory is judged by the next piece and by those behind it, which
`reward.discount` makes less of.

Each link is a rollout of its own with one position, as interleaved thoughts are; a whole chain lies
within one step, so that nothing of it has to be saved. The page's own next-token loss is that of
its first rollout, which has all of the page.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.thought_tree import thought_branch
from rntp.placement import Place
from rntp.rng import uniform
from rntp.rollout import Check, Engine, no_check
from rntp.types import Context, EarlierThought, NextTokenStats, Rollout, Thought


class CarriedEngine:
    """Samples through another engine, piece after piece.

    model: whose markers stand around a memory. piece: W, tokens. links: of every page, which has
    links · W + horizon tokens at least. seed: of the draw which memory goes on. keeps: the memory
    before joins every group.
    """

    def __init__(
        self,
        engine: Engine,
        model: LanguageModel,
        *,
        piece: int,
        links: int,
        horizon: int,
        seed: int,
        keeps: bool,
    ) -> None:
        self._engine = engine
        self._model = model
        self._piece = piece
        self._links = links
        self._horizon = horizon
        self._seed = seed
        self._keeps = keeps

    @property
    def inner(self) -> Engine:
        """The engine that samples."""
        return self._engine

    @property
    def docs_per_batch(self) -> int:
        """Contexts that decode together."""
        return int(getattr(self._engine, "docs_per_batch", 1))

    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """One rollout a link, pages in order; see `Engine`. Memories stand at the ends of pieces;
        place is not asked."""
        before = [written_by_nobody(context.token_ids[:0]) for context in contexts]
        links, rounds = list(contexts), list[list[Rollout]]()
        for k in range(self._links):
            if k:
                links = [
                    self._next(page, k, memory)
                    for page, memory in zip(contexts, before, strict=True)
                ]
            found = self._engine.sample(links, self._at_the_end, check, policy_version)
            if self._keeps:
                found = [_joined(r, m) for r, m in zip(found, before, strict=True)]
            rounds.append(found)
            before = [self._carried(rollout) for rollout in found]
        return [rollout for page in zip(*rounds, strict=True) for rollout in page]

    def _at_the_end(self, context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        return (context.inserted + self._piece,)

    def _next(self, page: Context, link: int, memory: Thought) -> Context:
        """The context of a link, counted from 0: a memory, the piece, and what memories are judged
        by."""
        first = link * self._piece
        stop = first + self._piece + self._horizon
        return piece_behind(page, first, stop, as_read(self._model, memory))

    def _carried(self, rollout: Rollout) -> Thought:
        """One of a link's memories, each as likely."""
        (group,), (position,) = rollout.thoughts, rollout.page_positions
        draw = uniform(self._seed, "carry", rollout.context.ordinal, position).item()
        return group[int(draw * len(group))]


def open_chain(
    engine: Engine, model: LanguageModel, config: Config, links: int, *, keeps: bool
) -> CarriedEngine:
    """Let an engine sample the links of chains, as `reading.piece` says."""
    assert config.reading.piece is not None
    return CarriedEngine(
        engine,
        model,
        piece=config.reading.piece,
        links=links,
        horizon=config.reward.horizon,
        seed=config.run.seed,
        keeps=keeps,
    )


def as_read(model: LanguageModel, memory: Thought) -> Tensor:
    """Put the start token and the markers around a memory, as a reading has it: int64 [n]."""
    markers = model.think_open_id, model.think_close_id
    read = memory.read_ids
    branch = thought_branch(read[: len(read) - int(memory.closed)], False, *markers)
    return torch.cat([branch.new_tensor([model.start_id]), branch])


def piece_behind(page: Context, first: int, stop: int, memory: Tensor) -> Context:
    """Make the context of a page's tokens first … stop - 1 behind a memory with its markers; what
    stood before is left."""
    return replace(
        page,
        token_ids=torch.cat([memory, page.token_ids[first:stop]]),
        seen=(EarlierThought(first, memory),),
        left=page.token_ids[:first],
    )


def written_by_nobody(ids: Tensor) -> Thought:
    """Make a memory that is kept as it was: int64 [n], between the markers."""
    return Thought(
        ids,
        torch.zeros(len(ids)),
        closed=False,
        given=torch.ones(len(ids), dtype=torch.bool),
        kept=True,
    )


def _joined(rollout: Rollout, memory: Thought) -> Rollout:
    """Let the memory before join the group of a link, as its last member."""
    (group,) = rollout.thoughts
    return replace(rollout, thoughts=((*group, written_by_nobody(memory.content)),))
