"""Several thoughts at one position, read together: what many short ones give beside few long ones.

Each is a prediction of the same continuation, and there are ways to make one of several:

    average    the mean of their probabilities, a token at a time
    weighed    the mean of their probabilities of the whole continuation: those count for more that
               have foretold the page so far (the bound of K thoughts, 2503.19618)
    surest     the one behind which the model is surest of the next token: it judges itself
    by weight  with a mixing head, thoughts count as it trusts them, and all of them together as
               much as the one that it trusts most, beside the prediction without any

All are predictions that could have been made: none looks at a token before it is predicted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rntp.evaluation.pages import Page, positions_of
from rntp.evaluation.resampling import interval

At = dict[str, Any]
# Log-probs [H] of the continuation by some thoughts of a position.
Way = Callable[[At, Sequence[dict[str, Any]]], np.ndarray]


def average(at: At, thoughts: Sequence[dict[str, Any]]) -> np.ndarray:
    """The mean of probabilities, a token at a time."""
    return _mean_of(np.array([t["logp_think"] for t in thoughts]), np.zeros((len(thoughts), 1)))


def weighed(at: At, thoughts: Sequence[dict[str, Any]]) -> np.ndarray:
    """The mean of probabilities of the continuation, token by token."""
    logp_KH = np.array([t["logp_think"] for t in thoughts])
    before_KH = np.cumsum(logp_KH, axis=1) - logp_KH
    return _mean_of(logp_KH, before_KH)


def surest(at: At, thoughts: Sequence[dict[str, Any]]) -> np.ndarray:
    """The first of those with the most probable next token."""
    best = max(thoughts, key=lambda t: t["first"]["confidence"])
    return np.array(best["logp_think"])


def by_weight(at: At, thoughts: Sequence[dict[str, Any]]) -> np.ndarray:
    """m Σ_k w_k p_k / Σ_k w_k + (1 − m) p(no thought), with m the largest of the head's w_k."""
    log_weight_KH = np.log(np.clip([t["weight"] for t in thoughts], 1e-12, 1.0))
    trusted = _mean_of(np.array([t["logp_alone"] for t in thoughts]), log_weight_KH)
    share = np.exp(log_weight_KH).max(axis=0)
    with np.errstate(divide="ignore"):
        both = [np.log(share) + trusted, np.log1p(-share) + np.array(at["logp_empty"])]
    return np.asarray(np.logaddexp(*both))


def _mean_of(logp_KH: np.ndarray, log_weight_KH: np.ndarray) -> np.ndarray:
    total = np.logaddexp.reduce(np.broadcast_to(log_weight_KH, logp_KH.shape), axis=0)
    return np.asarray(np.logaddexp.reduce(logp_KH + log_weight_KH, axis=0) - total)


WAYS: dict[str, Way] = {"average": average, "weighed": weighed, "surest": surest}


def together(pages_by_length: Mapping[str, Sequence[Page]], seed: int) -> list[dict[str, Any]]:
    """Rows of K = 1, 2, 4 … thoughts of every length, by the tokens that they take.

    pages_by_length: the same positions with thoughts closed after so many tokens. A row: length,
    thoughts, tokens (of all K, mean over positions), gain by way, nats a token of the continuation,
    with 95 % interval over documents. Groups of K share no thought, and a number is the mean over
    them. K = 1 is the mean over single thoughts, the same by every way.
    """
    rows = []
    for length, pages in pages_by_length.items():
        positions, documents_P = positions_of(pages)
        most = min(len(at["thoughts"]) for at in positions)
        for count in (2**n for n in range(int(math.log2(most)) + 1)):
            taken = [at["thoughts"][: most // count * count] for at in positions]
            tokens = np.mean([t["num_tokens"] for thoughts in taken for t in thoughts])
            rows.append(
                {
                    "length": length,
                    "thoughts": count,
                    "tokens": float(tokens) * count,
                    **{
                        name: _gain(way, positions, taken, count, documents_P, seed)
                        for name, way in _ways(positions).items()
                    },
                }
            )
    return sorted(rows, key=lambda row: row["tokens"])


def _ways(positions: Sequence[At]) -> dict[str, Way]:
    mixes = "weight" in positions[0]["thoughts"][0]
    return {**WAYS, "by weight": by_weight} if mixes else WAYS


def _gain(
    way: Way,
    positions: Sequence[At],
    taken: Sequence[Sequence[dict[str, Any]]],
    count: int,
    documents_P: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    gain_P = np.array(
        [
            np.mean(
                [
                    (way(at, thoughts[first : first + count]) - at["logp_empty"]).mean()
                    for first in range(0, len(thoughts), count)
                ]
            )
            for at, thoughts in zip(positions, taken, strict=True)
        ]
    )
    return {"gain": float(gain_P.mean()), "ci95": interval(gain_P, documents_P, seed)}
