"""What calls of tools are worth in an evaluation, and how much of it a leak could be."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rntp.evaluation.resampling import interval_of_some
from rntp.model import LanguageModel
from rntp.rollout.tool_calls import withheld_at
from rntp.tools.strict import longest_shared
from rntp.types import Context, Thought

# By the longest run of words that a result shares with what comes next: fewer than 5, 5 to 7, and
# what only a search without an n-gram's check gives.
_SPANS = (("0 to 4 words", 0, 4), ("5 to 7 words", 5, 7), ("8 words and more", 8, 1 << 30))


def calls_of(
    thought: Thought, model: LanguageModel, context: Context, position: int, horizon: int
) -> dict[str, Any]:
    """What a page keeps of the calls of a thought; nothing where there are none."""
    if not thought.calls:
        return {}
    withheld = withheld_at(model, context, position, horizon)
    given = [call.result for call in thought.calls if not call.failure]
    return {
        "calls": [
            {"name": c.name, "arguments": c.arguments, "failure": c.failure, **dict(c.withheld)}
            for c in thought.calls
        ],
        "shared_words": max((longest_shared(text, withheld) for text in given), default=0),
    }


def tool_use(pages: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Calls and their gain, nats a token, {"tools": …}; {} where no thought has called.

    precision: share of thoughts with a result whose gain is above 0. by_shared: gain of thoughts by
    the longest run of words that a result shares with the continuation: what is gained with long
    ones may be copied.
    """
    thoughts, gains, documents = [], [], []
    for number, page in enumerate(pages):
        for at in page["positions"]:
            for thought in at["thoughts"]:
                thoughts.append(thought)
                gains.append(float(np.mean(thought["logp_think"]) - np.mean(at["logp_empty"])))
                documents.append(number)
    calls = [call for thought in thoughts for call in thought.get("calls", [])]
    if not calls:
        return {}
    gain, document = np.array(gains), np.array(documents)
    called = np.array([bool(t.get("calls")) for t in thoughts])
    served = np.array([any(not c["failure"] for c in t.get("calls", [])) for t in thoughts])
    shared = np.array([t.get("shared_words", 0) for t in thoughts])

    def part(which: np.ndarray) -> dict[str, Any]:
        if not which.any():
            return {"thoughts": 0, "gain/mean": None, "gain/ci95": None}
        return {
            "thoughts": int(which.sum()),
            "gain/mean": float(gain[which].mean()),
            "gain/ci95": interval_of_some(gain[which], document[which], seed),
        }

    withheld: Counter[str] = Counter()
    for call in calls:
        withheld.update({k: v for k, v in call.items() if isinstance(v, int)})
    return {
        "tools": {
            "calls_per_thought": len(calls) / len(thoughts),
            "failures": dict(Counter(c["failure"] for c in calls if c["failure"])),
            "withheld": dict(withheld),
            "precision": float((gain[served] > 0).mean()) if served.any() else None,
            "called": part(called),
            "not_called": part(~called),
            "by_shared": {
                name: part(served & (low <= shared) & (shared <= high))
                for name, low, high in _SPANS
            },
        }
    }
