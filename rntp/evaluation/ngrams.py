"""Overlap of token sequences, for audits of what thoughts say."""

from collections.abc import Hashable, Sequence


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n consecutive tokens, in order; [] where there are fewer than n."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def covered(tokens: Sequence[Hashable], by: Sequence[Hashable], n: int) -> float | None:
    """Share of the n-grams of `tokens` that occur in `by`; None where `tokens` has none."""
    runs, there = ngrams(tokens, n), set(ngrams(by, n))
    return sum(run in there for run in runs) / len(runs) if runs else None
