"""BM25 over a handful of passages at hand: no index, and whatever the terms are."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from math import log
from typing import TypeVar

K1 = 1.2
Term = TypeVar("Term", bound=Hashable)


def okapi(counts: Sequence[Counter[Term]], query: Iterable[Term]) -> list[float]:
    """Score passages of one length by the terms that they share with a query (Okapi BM25, whose
    length term is 1 here). counts: of each passage's terms."""
    scores = [0.0] * len(counts)
    for term in dict.fromkeys(query):
        having = sum(term in count for count in counts)
        idf = log(1 + (len(counts) - having + 0.5) / (having + 0.5))
        for n, count in enumerate(counts):
            scores[n] += idf * count[term] * (K1 + 1) / (count[term] + K1)
    return scores
