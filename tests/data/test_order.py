import itertools

import pytest

from rntp.data.order import Order, ordinals_without

# A change here is a change of every run's data order: a resumed run would see other documents.
GOLDEN = [
    (7, 0),
    (8, 0),
    (9, 0),
    (2, 0),
    (4, 0),
    (1, 0),
    (5, 0),
    (3, 0),
    (0, 0),
    (6, 0),
    (5, 1),
    (2, 1),
]


@pytest.mark.parametrize("num_items", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4097])
def test_every_pass_hands_out_every_item_once(num_items: int) -> None:
    order = Order(num_items, seed=3)
    for visit in range(3):
        drawn = [order[visit * num_items + n] for n in range(num_items)]
        assert sorted(item for item, _ in drawn) == list(range(num_items))
        assert {v for _, v in drawn} == {visit}


def test_order_of_a_large_corpus_is_shuffled_evenly() -> None:
    num_items = 10**11
    items = [Order(num_items, seed=0)[n][0] for n in range(4000)]
    assert len(set(items)) == 4000
    assert min(items) >= 0
    assert max(items) < num_items
    # Mean of 4000 uniform draws: 0.5 with standard error 0.0046; the bound is five of them.
    assert abs(sum(items) / 4000 / num_items - 0.5) < 0.023
    rising = sum(a < b for a, b in itertools.pairwise(items))
    assert abs(rising / 3999 - 0.5) < 0.04


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    num_items = 200
    orders = {
        (seed, visit): tuple(Order(num_items, seed)[visit * num_items + n][0] for n in range(200))
        for seed in (0, 1)
        for visit in (0, 1)
    }
    assert len(set(orders.values())) == 4
    first = orders[0, 0]
    assert first != tuple(range(num_items))
    # Two independent permutations agree at one place on average.
    assert sum(a == b for a, b in zip(first, orders[0, 1], strict=True)) <= 8


def test_small_ranges_reach_every_permutation() -> None:
    seen = {tuple(Order(3, seed)[n][0] for n in range(3)) for seed in range(200)}
    assert len(seen) == 6


def test_order_never_changes() -> None:
    order = Order(10, seed=0)
    assert [order[n] for n in range(12)] == GOLDEN


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        Order(0, seed=0)
    with pytest.raises(ValueError, match="counts from 0"):
        Order(3, seed=0)[-1]


@pytest.mark.parametrize(
    ("aside", "start", "expected"),
    [
        (set(), 3, [3, 4, 5]),
        ({3, 4}, 0, [0, 1, 2]),
        ({3, 4}, 2, [2, 5, 6]),
        ({3, 4}, 3, [5, 6, 7]),
        ({0, 1, 5}, 3, [6, 7, 8]),
        ({0, 2, 4, 6}, 2, [5, 7, 8]),
    ],
)
def test_the_stream_without_what_is_set_aside(aside: set, start: int, expected: list) -> None:
    assert ordinals_without(aside, start, 3) == expected
    rest = [n for n in range(50) if n not in aside]
    assert expected == rest[start : start + 3]
