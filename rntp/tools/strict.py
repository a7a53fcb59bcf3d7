"""Which quotes a tool may give: none of the page, of its mirrors, or of what comes next.

The page and its continuation are known here and not to the tool: who scores a thought says what is
withheld from it. What a thought can still learn from a refusal is that a better passage was not
given.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rntp.tools.words import hashes, ngram_hashes, shared, shingles, spans, words

if TYPE_CHECKING:
    from rntp.tools.page import Quote

# Of near-duplicates: the length that MinHash filters of web corpora take (2406.17557).
SHINGLE = 5
# Words before the position that are looked at: an n-gram may begin there and end behind it.
_CHARACTERS_BEFORE = 400


@dataclass(frozen=True, slots=True)
class Withheld:
    """What a thought at a position must not be shown.

    page: the text of the whole context. before: of the part before the position. continuation: what
    the thought is rewarded for.
    """

    document_id: str
    page: str
    before: str
    continuation: str

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What a refusal depends on, for a cache's key."""
        return self.document_id, self.page, self.before, self.continuation


@dataclass(frozen=True, slots=True)
class Strict:
    """How strict a tool is.

    ngram: words in a row, of which one at least belongs to the continuation, that a quote must not
    share; 0 looks for none. near: share of the page's word 5-grams in a document, or of a
    document's in the page, from which on it counts as a near-duplicate; above 1 none does. quotes:
    that a result has at most.
    """

    ngram: int = 8
    near: float = 0.3
    quotes: int = 1

    def refuses(self, quote: "Quote", withheld: Withheld) -> str:
        """Say why a quote is not given (`same_page`, `continuation`, `near_duplicate`), or ""."""
        if quote.document_id == withheld.document_id:
            return "same_page"
        if self.ngram and gives_away(quote.text, withheld, self.ngram):
            return "continuation"
        if self.near <= 1 and overlap(withheld.page, quote.document()) >= self.near:
            return "near_duplicate"
        return ""


def gives_away(text: str, withheld: Withheld, n: int) -> bool:
    """Tell whether a text shares n words in a row with the page's, one of the continuation's among
    them. Where page and continuation have fewer than n words, nothing is shared."""
    before = withheld.before[-_CHARACTERS_BEFORE:]
    found = list(spans(before + withheld.continuation))
    # A word that the position cuts is the continuation's.
    first = sum(end <= len(before) for _, end in found)
    if first == len(found):
        return False
    tail = [word for word, _ in found[max(first - n + 1, 0) :]]
    runs = ngram_hashes(hashes(tail), n)
    return bool(np.isin(runs, ngram_hashes(hashes(words(text)), n)).any())


def longest_shared(text: str, withheld: Withheld, most: int = 32) -> int:
    """Count the words in a row that a text shares with the page's, one of the continuation's among
    them, at most `most`: what `gives_away` would have to be asked to notice."""
    found = 0
    while found < most and gives_away(text, withheld, found + 1):
        found += 1
    return found


def overlap(page: str, document: str) -> float:
    """Share of the word 5-grams of the one that the other has, whichever share is larger."""
    one, other = shingles(page, SHINGLE), shingles(document, SHINGLE)
    smaller = min(len(one), len(other))
    return shared(one, other) / smaller if smaller else 0.0
