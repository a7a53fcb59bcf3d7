"""How a model mixes predictions with a thought and without one, and what that is worth."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rntp.evaluation.resampling import interval

Page = dict[str, Any]


def mixing_table(pages: Sequence[Page], seed: int) -> dict[str, Any]:
    """{"mixing": …} of a model that mixes, else {}.

    Over all continuation tokens and thoughts. weight: mean w. alone: gain of the thought read
    alone, w = 1, nats a token. over_alone: what mixing adds to that, nats a token, with its 95 %
    interval. classes: weight, gain mixed and gain alone of the token right after the thought, by
    class, on made corpora. See `rntp.model.mixing`.
    """
    rows = [
        (number, at["class"].partition(",")[0] if at.get("class") else "", thought, at)
        for number, page in enumerate(pages)
        for at in page["positions"]
        for thought in at["thoughts"]
    ]
    if not rows or any("weight" not in thought for _, _, thought, _ in rows):
        return {}
    document = np.array([n for n, _, t, _ in rows for _ in t["weight"]])
    weight = np.array([w for _, _, t, _ in rows for w in t["weight"]])
    alone = np.array([x for _, _, t, _ in rows for x in t["logp_alone"]])
    mixed = np.array([x for _, _, t, _ in rows for x in t["logp_think"]])
    empty = np.array([x for _, _, _, at in rows for x in at["logp_empty"]])
    return {
        "mixing": {
            "weight": float(weight.mean()),
            "alone": float((alone - empty).mean()),
            "alone_ci95": interval(alone - empty, document, seed),
            "over_alone": float((mixed - alone).mean()),
            "over_alone_ci95": interval(mixed - alone, document, seed),
            "classes": {
                name: _first([(t, at) for _, own, t, at in rows if own == name])
                for name in sorted({own for _, own, _, _ in rows} - {""})
            },
        }
    }


def _first(members: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Means over the first tokens of some continuations, each with its position."""

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    return {
        "weight": mean([t["weight"][0] for t, _ in members]),
        "gain": mean([t["logp_think"][0] - at["logp_empty"][0] for t, at in members]),
        "alone": mean([t["logp_alone"][0] - at["logp_empty"][0] for t, at in members]),
    }
