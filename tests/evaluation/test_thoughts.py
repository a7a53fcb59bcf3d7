"""What thoughts look like, and whether they say the continuation: by hand."""

import pytest
import torch
from conftest import tiny_tokenizer

from rntp.evaluation.ngrams import covered, ngrams
from rntp.evaluation.thoughts import describe_thoughts
from rntp.types import Context, Rollout, Thought


def thought(*ids: int, closed: bool = False) -> Thought:
    marker = (319,) if closed else ()
    return Thought(torch.tensor([*ids, *marker]), torch.zeros(len(ids) + len(marker)), closed)


def rollout(tokens: list[int], position: int, *thoughts: Thought) -> Rollout:
    context = Context(0, "x", torch.tensor(tokens))
    return Rollout(context, (position,), (thoughts,), torch.zeros(1), torch.zeros(1))


def test_overlap_is_the_share_of_ngrams() -> None:
    assert ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    assert covered([1, 2, 1, 2], [5, 1, 2], 2) == pytest.approx(2 / 3)
    assert covered([1, 2], [2, 1], 2) == 0
    assert covered([1, 2], [], 1) == 0
    assert covered([1], [1, 2], 2) is None


def test_lengths_variety_and_openings() -> None:
    thoughts = [
        thought(10, 11, 12, 13),
        thought(10, 11, 12, 14, closed=True),
        thought(20, 21, 22, closed=True),
        thought(closed=True),
    ]
    found = describe_thoughts(
        [rollout([1, 2, 3, 4], 2, *thoughts)], tiny_tokenizer(), horizon=2, seed=0
    )
    assert found["num_thoughts"] == 4
    assert found["closed_frac"] == 0.75
    assert found["quantiles"]["0"] == 0
    assert found["quantiles"]["50"] == 3.5
    assert found["quantiles"]["100"] == 4
    assert found["histogram"] == [
        {"from": 0, "to": 0, "count": 1},
        {"from": 1, "to": 1, "count": 0},
        {"from": 2, "to": 3, "count": 1},
        {"from": 4, "to": 7, "count": 2},
    ]
    # 11 unigrams, 8 of them different; 8 bigrams, of which two stand twice.
    assert found["distinct"] == {"1": 8 / 11, "2": 6 / 8, "3": 4 / 5}
    assert found["opening"]["share"] == pytest.approx(2 / 3)
    assert len(found["opening"]["text"]) >= 3


def test_a_thought_that_says_its_continuation_is_seen_against_anothers() -> None:
    one = rollout([1, 2, 3, 30, 31, 32], 3, thought(30, 31, 32), thought(2, 3, 9))
    two = rollout([4, 5, 6, 40, 41, 42], 3, thought(40, 41, 7), thought(5, 6, 8))
    found = describe_thoughts([one, two], tiny_tokenizer(), horizon=3, seed=0)
    single, double, triple = found["leak"]
    assert single["n"] == 1
    assert single["own"] == pytest.approx((1 + 0 + 2 / 3 + 0) / 4)
    assert single["other"] == 0
    assert single["own_minus_other"] == pytest.approx(single["own"])
    assert single["own_minus_other_ci95"] == pytest.approx([1 / 3, 1 / 2])
    assert single["prefix"] == pytest.approx((0 + 2 / 3 + 0 + 2 / 3) / 4)
    assert double["own"] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)
    assert triple["own"] == pytest.approx(1 / 4)


def test_words_in_common_are_no_leak() -> None:
    """Both pages go on with the same words, which the thought has: own = other."""
    given = [rollout([n, 2, 3, 50, 51], 3, thought(50, 51)) for n in range(3)]
    row = describe_thoughts(given, tiny_tokenizer(), horizon=2, seed=0)["leak"][0]
    assert (row["own"], row["other"], row["own_minus_other"]) == (1, 1, 0)


def test_one_document_has_no_other() -> None:
    row = describe_thoughts(
        [rollout([1, 2, 3, 4], 2, thought(3))], tiny_tokenizer(), horizon=2, seed=0
    )["leak"][0]
    assert row["own"] == 0.5
    assert row["other"] is None
    assert row["own_minus_other_ci95"] is None
