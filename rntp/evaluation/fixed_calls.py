"""Searches by fixed rules in the place of thoughts: arms that a learned query is compared with.

The reader is the model as it is, so that what differs is the query alone; tools are as strict as in
training. Where a search finds nothing the thought is empty.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.evaluation.pieces import written
from rntp.model import LanguageModel
from rntp.model.tokenizer import decode, encode
from rntp.rollout.tool_calls import bare_ids, tool_calls
from rntp.tools.proposals import PROPOSALS, Before
from rntp.tools.words import words
from rntp.types import Rollout, Thought

# By name: the rule, and how many documents further on the page is that the query is made of.
FIXED = {"last_words": ("last_words", 0), "rare_words": ("rare_words", 0)}
FIXED |= {"others_words": ("last_words", 1)}

Control = Callable[[Sequence[Rollout], PreTrainedTokenizerBase], list[Rollout]]


def call_controls(model: LanguageModel, config: Config) -> dict[str, Control]:
    """Make the searches controls of an evaluation, where a run may search.

    others_words asks with the last words of the position of the same number in the next document:
    a piece that is about something else.
    """
    if "search" not in config.thought.tools.use:
        return {}
    return {name: partial(by_rule, *FIXED[name], model, config) for name in FIXED}


def by_rule(
    rule: str,
    further: int,
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

    def query(number: int, place: int) -> str:
        of_one = texts[(number + further) % len(texts)]
        calls = PROPOSALS[rule](Before(of_one[place % len(of_one)], documents))
        return calls[0] if calls else ""

    nothing = written(rollouts[0].context.token_ids[:0]) if rollouts else None
    with tool_calls(model, config) as tools:
        asked = []
        for number, rollout in enumerate(rollouts):
            for place, position in enumerate(rollout.positions):
                ids = encode(tokenizer, query(number, place))
                asked.append((ids, tools.ask(ids.tolist(), rollout.context, position)))
        outcomes = tools.desk.settle([ask for _, ask in asked], wait=True)
        thoughts: list[Thought] = []
        for (ids, _), outcome in zip(asked, outcomes, strict=True):
            assert outcome is not None
            assert nothing is not None
            thoughts.append(nothing if outcome.failure else tools.thought(ids, outcome))
    following = iter(thoughts)
    return [replace(r, thoughts=tuple((next(following),) for _ in r.positions)) for r in rollouts]
