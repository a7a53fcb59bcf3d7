"""Thoughts that see the earlier thoughts of their page.

The positions of a page are thought at one after the other. Of the thoughts at a position one is
drawn, and stands in the page from there on, with its markers:

    page      x[:p1] │ x[p1:p2] │ x[p2:]
    1st       x[:p1] ─ G thoughts, judged by x[p1:p1+H]
    2nd       x[:p1] <think> c </think> x[p1:p2] ─ G thoughts, judged by x[p2:p2+H]

Each is a rollout of its own with one position, so that tree, rewards and losses are those of any
other; its no-think baseline sees the earlier thoughts, too. The page's own next-token loss is that
of its first rollout, in which nothing stands but the page.
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
from rntp.rollout.carried import CarriedEngine, open_chain
from rntp.rollout.engine import (
    InProcessEngine,
    ReadingEngine,
    open_engine,
)
from rntp.rollout.unshared import UnsharedEngine
from rntp.rollout.vllm.engine import VllmEngine
from rntp.types import Context, EarlierThought, NextTokenStats, Rollout


class InterleavedEngine:
    """Samples through another engine, position after position.

    model: whose think markers stand around a thought. seed: of the draw which thought the later
    ones see. The first position's thoughts are those of the engine alone.
    """

    def __init__(self, engine: Engine, model: LanguageModel, seed: int) -> None:
        self._engine = engine
        self._model = model
        self._seed = seed

    @property
    def inner(self) -> Engine:
        """The engine that samples."""
        return self._engine

    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """K rollouts a context, in order; see `Engine`. place is asked once, for the bare page."""
        chosen: list[tuple[int, ...]] = []

        def first(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
            chosen.append(place(context, next_token))
            return chosen[-1][:1]

        rounds = [self._engine.sample(contexts, first, check, policy_version)]
        for k in range(1, max(map(len, chosen), default=0)):
            longer = [self.with_a_thought(r) for r in rounds[-1]]
            following = {
                c.ordinal: at[k] + c.inserted for c, at in zip(longer, chosen, strict=True)
            }

            def next_one(
                context: Context, next_token: NextTokenStats, at: dict[int, int] = following
            ) -> tuple[int, ...]:
                return (at[context.ordinal],)

            rounds.append(self._engine.sample(longer, next_one, check, policy_version))
        return [rollout for page in zip(*rounds, strict=True) for rollout in page]

    def with_a_thought(self, rollout: Rollout) -> Context:
        """Splice one of a rollout's thoughts into its context, each as likely."""
        (group,), (position,) = rollout.thoughts, rollout.page_positions
        draw = uniform(self._seed, "interleave", rollout.context.ordinal, position).item()
        thought = group[int(draw * len(group))]
        markers = self._model.think_open_id, self._model.think_close_id
        branch = thought_branch(thought.sampled_ids, thought.closed, *markers)
        return splice(rollout.context, position, branch)


def open_training_engine(model: LanguageModel, config: Config) -> Engine:
    """Make the engine that samples for training, interleaved or in chains as the config says."""
    thoughts, answer_tokens = config.sampled_thoughts, config.thought.answer_tokens
    engine: Engine
    if config.rollout.engine == "vllm":
        engine = VllmEngine(model, config, thoughts=thoughts, answer_tokens=answer_tokens)
    else:
        engine = open_engine(
            model,
            config,
            thoughts=thoughts,
            answer_tokens=answer_tokens,
            or_none=config.thought.source == "policy_or_none",
        )
    if config.reading.piece is not None:
        return open_chain(engine, model, config, config.placement.positions_per_doc, keeps=True)
    if not config.placement.interleaved:
        return engine
    return InterleavedEngine(engine, model, config.run.seed)


def open_evaluation_engine(
    model: LanguageModel, config: Config, count: int, *, answers: bool = False
) -> InProcessEngine | UnsharedEngine | ReadingEngine | CarriedEngine:
    """Make the engine that samples for evaluation, at `count` positions of a page: in isolation, or
    in chains of memories where pages are read by pieces. answers: write them, too, as in training.
    """
    engine = open_engine(
        model,
        config,
        thoughts=config.evaluation.thoughts_per_position,
        answer_tokens=config.thought.answer_tokens if answers else 0,
        purpose="evaluation thought",
    )
    if config.reading.piece is None:
        return engine
    return open_chain(engine, model, config, count, keeps=False)


def splice(context: Context, position: int, branch: Tensor) -> Context:
    """The context with a thought before the token at a position of the page.

    branch: int64 [n], with both markers. Thoughts are spliced in from left to right. Labels are of
    the bare page and left out.
    """
    at = position + context.inserted
    ids = context.token_ids
    return replace(
        context,
        token_ids=torch.cat([ids[:at], branch, ids[at:]]),
        labels=None,
        seen=(*context.seen, EarlierThought(position, branch)),
    )


def on_pages(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """One rollout a page, with positions of the bare page, thoughts in the same order.

    For what looks at where a page was thought at; isolated rollouts come back as they are.
    """
    pages: list[Rollout] = []
    for rollout in rollouts:
        if not rollout.context.seen:
            pages.append(rollout)
            continue
        page = pages[-1]
        pages[-1] = replace(
            page,
            positions=(*page.positions, *rollout.page_positions),
            thoughts=(*page.thoughts, *rollout.thoughts),
            entropy=torch.cat([page.entropy, rollout.entropy]),
            nll=torch.cat([page.nll, rollout.nll]),
        )
    return pages
