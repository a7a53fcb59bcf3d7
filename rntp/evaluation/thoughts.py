"""What thoughts look like: lengths, variety, templates, and whether they say the continuation."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rntp.evaluation.ngrams import covered, ngrams
from rntp.evaluation.resampling import interval_of_some
from rntp.model.tokenizer import decode
from rntp.types import Rollout

QUANTILES = (0, 10, 25, 50, 75, 90, 100)
NGRAMS = (1, 2, 3)
OPENING_TOKENS = 3


def describe_thoughts(
    rollouts: Sequence[Rollout],
    tokenizer: PreTrainedTokenizerBase,
    *,
    horizon: int,
    seed: int,
) -> dict[str, Any]:
    """Lengths, share closed by the model, variety, the most common opening, and the leak audit.

    distinct: distinct n-grams / n-grams over all thoughts, by n; None without any. opening: the
    share of thoughts that begin with the most common three tokens, of those that have three.
    """
    thoughts = [t for r in rollouts for group in r.thoughts for t in group]
    ids = [t.content.tolist() for t in thoughts]
    shortest = min((r.context.num_scored(horizon) for r in rollouts), default=horizon)
    lengths = np.array([len(each) for each in ids])
    openings = Counter(tuple(each[:OPENING_TOKENS]) for each in ids if len(each) >= OPENING_TOKENS)
    opening: dict[str, Any] = {"num_tokens": OPENING_TOKENS, "text": None, "share": None}
    if openings:
        most, count = openings.most_common(1)[0]
        text = decode(tokenizer, torch.tensor(most))
        opening |= {"text": text, "share": count / openings.total()}
    return {
        "num_thoughts": len(thoughts),
        "closed_frac": float(np.mean([t.closed for t in thoughts])),
        "quantiles": {str(q): float(np.percentile(lengths, q)) for q in QUANTILES},
        "histogram": _histogram(lengths),
        "distinct": {str(n): _distinct(ids, n) for n in NGRAMS},
        "opening": opening,
        "leak": [_leak(rollouts, n, horizon, seed) for n in NGRAMS if n <= shortest],
    }


def _histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Thoughts by length, tokens: 0, 1, 2 … 3, 4 … 7, 8 … 15 and so on, up to the longest."""
    rows, low = [], 0
    while low <= lengths.max():
        high = max(2 * low - 1, low)
        count = int(((low <= lengths) & (lengths <= high)).sum())
        rows.append({"from": low, "to": high, "count": count})
        low = high + 1
    return rows


def _distinct(ids: Sequence[list[int]], n: int) -> float | None:
    """Distinct n-grams over all thoughts, as a share of them (1510.03055)."""
    found = [run for each in ids for run in ngrams(each, n)]
    return len(set(found)) / len(found) if found else None


def _leak(rollouts: Sequence[Rollout], n: int, horizon: int, seed: int) -> dict[str, Any]:
    """Does a thought say its continuation, more than it says another document's?

    own: share of the continuation's n-grams that the thought has. other: of the continuation at
    the same place in the next document; what words in common explain. own_minus_other: with its
    interval. prefix: share of the thought's n-grams that the prefix has, i.e. copied from it. A
    thought cannot see its continuation; own above other is guessing well or knowing the page.
    """
    own, other, prefix, documents = [], [], [], []
    for number, rollout in enumerate(rollouts):
        ids = rollout.context.token_ids.tolist()
        following = rollouts[(number + 1) % len(rollouts)]
        for k, (position, group) in enumerate(
            zip(rollout.positions, rollout.thoughts, strict=True)
        ):
            place = following.positions[k % len(following.positions)]
            end = place + following.context.num_scored(horizon)
            strange = following.context.token_ids[place:end].tolist()
            held_out = ids[position : position + rollout.context.num_scored(horizon)]
            for thought in group:
                said = thought.content.tolist()
                own.append(covered(held_out, said, n))
                other.append(covered(strange, said, n))
                prefix.append(covered(said, ids[:position], n))
                documents.append(number)
    copied = [share for share in prefix if share is not None]
    own_N, other_N = np.array(own, dtype=float), np.array(other, dtype=float)
    row: dict[str, Any] = {
        "n": n,
        "own": float(own_N.mean()),
        "other": None,
        "own_minus_other": None,
        "own_minus_other_ci95": None,
        "prefix": float(np.mean(copied)) if copied else None,
    }
    if len(rollouts) > 1:  # the only document has no other
        difference = own_N - other_N
        row |= {
            "other": float(other_N.mean()),
            "own_minus_other": float(difference.mean()),
            "own_minus_other_ci95": interval_of_some(difference, np.array(documents), seed),
        }
    return row
