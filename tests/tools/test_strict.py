"""What quotes are withheld."""

import numpy as np
import pytest

from rntp.tools import Quote, Strict, Withheld
from rntp.tools.strict import gives_away, overlap
from rntp.tools.words import hashes, ngram_hashes, shared, shingles, words

PAGE = "the first sentence of a page ends here. and its second one is rewarded, word by word"
BEFORE = "the first sentence of a page ends here."
AFTER = " and its second one is"
WITHHELD = Withheld("page", PAGE, BEFORE, AFTER)


def quote(text: str, document: str = "", name: str = "other") -> Quote:
    return Quote(text, name, lambda: document or text)


def test_words_are_alike_however_they_are_set() -> None:
    assert words("The *Quick*, brown\nFOX_2 — naïve!") == [
        "the",
        "quick",
        "brown",
        "fox",
        "2",
        "naïve",
    ]
    assert words("東京タワー tower") == [*"東京タワー", "tower"]
    assert words("… – ()") == []


def test_ngrams_are_runs_of_words() -> None:
    one, other = (ngram_hashes(hashes(words(text)), 3) for text in ("a b c d", "x b c d"))
    assert len(one) == 2
    assert np.isin(one, other).tolist() == [False, True]
    assert len(ngram_hashes(hashes(words("a b")), 3)) == 0
    swapped = ngram_hashes(hashes(words("b a c")), 3)
    assert not np.isin(swapped, ngram_hashes(hashes(words("a b c")), 3)).any()
    assert shared(shingles("a b c a b c", 3), shingles("a b c", 3)) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("AND ITS second, one -- is there", True),
        # Four words of the page and the first of the continuation.
        ("a page ends here and nothing else", True),
        ("of a page ends here", False),
        ("its second one was", False),
        ("word by word and so on", False),
    ],
)
def test_five_words_in_a_row_of_which_one_comes_next(text: str, found: bool) -> None:
    assert gives_away(text, WITHHELD, 5) is found


def test_a_word_that_the_position_cuts_comes_next() -> None:
    cut = Withheld("page", "a b c deed", "a b c de", "ed")
    assert gives_away("x b c deed y", cut, 3)
    assert not gives_away("a b c de", cut, 3)
    assert not gives_away("a b c", Withheld("page", "a b c. ", "a b c", ". "), 3)


def test_short_pages_share_nothing() -> None:
    assert not gives_away("a b", Withheld("page", "a b", "a", " b"), 3)
    assert gives_away("a b", Withheld("page", "a b", "a", " b"), 2)


def test_overlap_is_the_larger_share() -> None:
    page = " ".join(f"w{n}" for n in range(24))
    mirror = "menu about us " + page + " and more " + " ".join(f"v{n}" for n in range(200))
    assert overlap(page, mirror) == 1
    assert overlap(mirror, page) == 1
    half = " ".join(f"w{n}" for n in range(14)) + " " + " ".join(f"x{n}" for n in range(100))
    assert overlap(page, half) == pytest.approx(0.5)
    assert overlap(page, "something else that has nothing of it") == 0
    assert overlap("a b", "a b") == 0  # nothing to compare


def test_reasons() -> None:
    strict = Strict(ngram=5, near=0.5)
    assert strict.refuses(quote("anything", name="page"), WITHHELD) == "same_page"
    assert strict.refuses(quote("and its second one is"), WITHHELD) == "continuation"
    assert strict.refuses(quote("harmless", PAGE + " mirrored"), WITHHELD) == "near_duplicate"
    assert strict.refuses(quote("harmless"), WITHHELD) == ""


def test_levels_of_strictness() -> None:
    given = quote("and its second one is", "long " * 50)
    assert Strict(ngram=5, near=2).refuses(given, WITHHELD) == "continuation"
    assert Strict(ngram=14, near=2).refuses(given, WITHHELD) == ""
    assert Strict(ngram=0, near=2).refuses(given, WITHHELD) == ""
    # Never the page itself.
    assert Strict(ngram=0, near=2).refuses(quote("x", name="page"), WITHHELD) == "same_page"
