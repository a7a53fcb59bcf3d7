"""Words of a text and their n-grams, alike however a page is set: case and punctuation are left
out, and a script that writes no spaces has a word a character."""

import re
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

# Thai to Myanmar, CJK with kana, and Hangul syllables stay words of their own (they have spaces).
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
_WORD = re.compile(f"[{_UNSPACED}]|(?:(?![{_UNSPACED}_])\\w)+")
# Odd, and its powers odd: a product loses no bits of what it multiplies.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """Split a text into its words, casefolded."""
    return [word for word, _ in spans(text)]


def spans(text: str) -> Iterator[tuple[str, int]]:
    """Go through a text's words: (word, index of the character behind it)."""
    for match in _WORD.finditer(text):
        yield match[0].casefold(), match.end()


def hashes(found: list[str]) -> np.ndarray:
    """Hash words: uint64 [n]."""
    values = (zlib.crc32(word.encode("utf-8", "replace")) for word in found)
    return np.fromiter(values, dtype=np.uint64, count=len(found))


def ngram_hashes(values: np.ndarray, n: int) -> np.ndarray:
    """Hash every run of n words by the words' hashes [w]: uint64 [max(w - n + 1, 0)], in order."""
    count = max(len(values) - n + 1, 0)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        total = total * _MULTIPLIER + values[place : place + count] + np.uint64(1)
    return total


@lru_cache(maxsize=512)
def shingles(text: str, n: int) -> np.ndarray:
    """Hash the different n-grams of a text's words: uint64, ascending."""
    return np.unique(ngram_hashes(hashes(words(text)), n))


def shared(one: np.ndarray, other: np.ndarray) -> int:
    """Count what two outcomes of `shingles` have in common."""
    return int(np.isin(one, other, assume_unique=True, kind="sort").sum())
