"""Calls by fixed rules in the place of thoughts: arms that a learned call is compared with.

The reader is the model as it is, so that what differs is the call alone; tools are as strict as in
training. Where no call of a rule has a result the thought is empty.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.evaluation.pieces import written
from rntp.model import LanguageModel
from rntp.model.tokenizer import decode, encode
from rntp.rollout.tool_calls import bare_ids, tool_calls
from rntp.tools.proposals import PROPOSALS, Before
from rntp.tools.words import words
from rntp.types import Rollout, Thought


@dataclass(frozen=True)
class Fixed:
    """What a control asks. rule: a proposal, whose calls are made one after the other until one has
    a result. further: how many documents on the page is that they are made of. fits: pass over what
    is too long for a thought, as the policy has to."""

    rule: str
    further: int = 0
    fits: bool = False


SEARCHES = {
    "last_words": Fixed("last_words"),
    "rare_words": Fixed("rare_words"),
    "others_words": Fixed("last_words", further=1),
}
COMPUTATIONS = {"expression": Fixed("expression", fits=True)}

Control = Callable[[Sequence[Rollout], PreTrainedTokenizerBase], list[Rollout]]


def call_controls(model: LanguageModel, config: Config) -> dict[str, Control]:
    """Make the calls controls of an evaluation, where a run has their tools.

    others_words asks with the last words of the position of the same number in the next document:
    a piece that is about something else.
    """
    use = config.thought.tools.use
    found = (SEARCHES if "search" in use else {}) | (COMPUTATIONS if "python" in use else {})
    return {name: partial(by_rule, fixed, model, config) for name, fixed in found.items()}


def by_rule(
    fixed: Fixed,
    model: LanguageModel,
    config: Config,
    rollouts: Sequence[Rollout],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Rollout]:
    """Put one call by a rule, with its result, in the place of the thoughts at each position."""
    texts = [
        [decode(tokenizer, bare_ids(r.context)[:p]) for p in r.page_positions] for r in rollouts
    ]
    documents: Counter[str] = Counter()
    for of_one in texts:
        documents.update(set(words(of_one[-1])) if of_one else ())

    def calls(number: int, place: int) -> Iterator[Tensor]:
        of_one = texts[(number + fixed.further) % len(texts)]
        for call in PROPOSALS[fixed.rule](Before(of_one[place % len(of_one)], documents)):
            ids = encode(tokenizer, call)
            # With the markers of the call and the end of the thought.
            if not fixed.fits or len(ids) + 3 <= config.thought.thought_tokens:
                yield ids

    places = [(n, k) for n, rollout in enumerate(rollouts) for k in range(len(rollout.positions))]
    left = {place: calls(*place) for place in places}
    thoughts: dict[tuple[int, int], Thought] = {}
    with tool_calls(model, config) as tools:
        while left:
            asked = {place: ids for place in left if (ids := next(left[place], None)) is not None}
            left = {place: left[place] for place in asked}
            asks = []
            for (number, k), ids in asked.items():
                rollout = rollouts[number]
                asks.append(tools.ask(ids.tolist(), rollout.context, rollout.positions[k]))
            for (place, ids), outcome in zip(
                asked.items(), tools.desk.settle(asks, wait=True), strict=True
            ):
                assert outcome is not None
                if not outcome.failure and outcome.text.strip():
                    thoughts[place] = tools.thought(ids, outcome)
                    del left[place]
    nothing = written(torch.zeros(0, dtype=torch.int64))
    return [
        replace(
            r, thoughts=tuple((thoughts.get((n, k), nothing),) for k in range(len(r.positions)))
        )
        for n, r in enumerate(rollouts)
    ]
