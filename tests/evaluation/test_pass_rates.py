"""pass@k against its definition, and the table of tasks."""

from itertools import combinations

import numpy as np
import pytest

from rntp.evaluation.pass_rates import beside, pass_at, powers, task_table


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 2), (5, 2, 4), (6, 0, 3), (6, 6, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int, c: int, k: int) -> None:
    right = [True] * c + [False] * (n - c)
    subsets = list(combinations(right, k))
    assert pass_at(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_known_values() -> None:
    assert pass_at(8, 1, 1) == pytest.approx(1 / 8)
    assert pass_at(8, 1, 8) == 1
    assert pass_at(200, 10, 100) == pytest.approx(0.99926, abs=1e-4)
    assert powers(1) == [1]
    assert powers(8) == [1, 2, 4, 8]
    assert powers(6) == [1, 2, 4, 6]


def test_it_is_unbiased() -> None:
    """The mean over draws of n attempts is 1 − (1 − p)^k, which a plug-in c / n would miss."""
    generator = np.random.default_rng(0)
    n, k, p = 8, 4, 0.2
    right = generator.binomial(n, p, size=40_000)
    found = np.mean([pass_at(n, int(c), k) for c in right])
    plugged = np.mean(1 - (1 - right / n) ** k)
    truth = 1 - (1 - p) ** k
    assert abs(found - truth) < 0.005
    assert abs(plugged - truth) > 0.03


def page(scores: list[float], source: str = "a") -> dict:
    attempts = [{"score": s, "closed": s > 0, "num_tokens": 2, "answer_tokens": 3} for s in scores]
    return {"task": {"answer": "x", "source": source}, "positions": [{"thoughts": attempts}]}


def test_the_table() -> None:
    pages = [page([1, 0, 0, 0]), page([1, 1, 1, 1]), page([0, 0, 0.5, 0], "b"), page([0] * 4, "b")]
    table = task_table([*pages, {"positions": []}], seed=0)["tasks"]
    rates = {row["k"]: row["pass"] for row in table["pass_at"]}
    assert rates == pytest.approx({1: 5 / 16, 2: 0.375, 4: 0.5})
    assert table["by_source"] == pytest.approx({"a": 5 / 8, "b": 0})
    assert table["score"] == pytest.approx(5.5 / 16)  # half a point is not a pass
    assert (table["num_tasks"], table["attempts"]) == (4, 4)
    assert table["closed"] == pytest.approx(6 / 16)
    for row in table["pass_at"]:
        low, high = row["ci95"]
        assert low <= row["pass"] <= high
        assert high - low > 0.2  # four tasks say little


def test_without_tasks_there_is_no_table() -> None:
    assert task_table([{"positions": [{"thoughts": [{}]}]}], seed=0) == {}
    unanswered = page([0])
    del unanswered["positions"][0]["thoughts"][0]["score"]
    assert task_table([unanswered], seed=0) == {}


def test_before_and_after_are_paired_over_tasks() -> None:
    before = [page([0, 0]), page([1, 0]), page([1, 1]), page([0, 0])]
    after = [page([1, 0]), page([1, 1]), page([1, 1]), page([1, 0])]
    row = beside(before, after, seed=0)["tasks/pass_at_1"]
    assert (row["before"], row["after"], row["change"]) == (0.375, 0.75, 0.375)
    low, high = row["ci95"]
    assert 0 < low < 0.375 < high <= 0.5
    assert beside([], [], seed=0) == {}
