"""Thoughts at the end of given texts."""

from collections.abc import Iterable

import torch

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.rollout.engine import open_engine
from rntp.rollout.tool_calls import serving
from rntp.types import Context, NextTokenStats, Thought

Ids = tuple[int, ...]
"""Token ids."""

_SLOTS = 128


def slots(longest: int) -> int:
    """Round the width of the storage for texts of so many tokens up: it hardly depends on them."""
    return -(-longest // _SLOTS) * _SLOTS


def thoughts_after(
    model: LanguageModel, config: Config, texts: Iterable[Ids], thoughts: int
) -> dict[Ids, tuple[Thought, ...]]:
    """Sample so many thoughts at the end of each text, once for a text that is given twice.

    texts: not empty, each so short that the model sees a thought behind it.
    """
    different = list(dict.fromkeys(texts))
    # The engine wants a token after the position; no thought sees it.
    contexts = [Context(n, "", torch.tensor([*text, 0])) for n, text in enumerate(different)]
    longest = max(map(len, contexts), default=1)
    engine = open_engine(
        model, config, thoughts=thoughts, purpose="task thought", slots=slots(longest)
    )

    def at_the_end(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        return (len(context) - 1,)

    with serving(engine, model, config):
        rollouts = engine.sample(contexts, at_the_end, lambda: None)
    return {text: r.thoughts[0] for text, r in zip(different, rollouts, strict=True)}
