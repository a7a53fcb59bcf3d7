from collections import Counter
from dataclasses import replace

import pytest

from rntp.grow.choice import beliefs, choose
from rntp.grow.frontier import Region, Worth


def region(name: str, index: int, *worths: tuple[float, float], **facts: object) -> Region:
    found = Region(name, index, **facts)  # type: ignore[arg-type]
    found.worths = [Worth(gain, spread, 0.0, -0.1, 1) for gain, spread in worths]
    found.taken = found.judged = max(found.taken, len(worths))
    found.kept = len(worths)
    return found


def picked(regions: list[Region], count: int = 400, random_share: float = 0.0) -> Counter[str]:
    known = beliefs(regions, 1)
    draws = (
        choose(regions, known, seed=3, number=n, random_share=random_share) for n in range(count)
    )
    return Counter(choice.region for choice in draws)


def jittered(gain: float, spread: float, count: int) -> list[tuple[float, float]]:
    return [(gain + 0.1 * (-1) ** n, spread + 0.01 * (-1) ** n) for n in range(count)]


def test_what_spreads_rewards_without_gain_is_not_taken_for_learning() -> None:
    regions = [
        region("noise", 0, *jittered(-0.4, 1.1, 10)),
        region("learnable", 1, *jittered(0.12, 0.1, 10)),
        region("easy", 2, *jittered(-0.05, 0.02, 10)),
    ]
    found = picked(regions)
    assert found["learnable"] >= 380
    assert found["noise"] == 0


def test_what_is_known_already_is_left_for_what_is_not() -> None:
    mastered = region("mastered", 0, *jittered(0.9, 0.005, 10))
    learnable = region("learnable", 1, *jittered(0.3, 0.25, 10))
    assert picked([mastered, learnable])["learnable"] == 400
    # By gain alone it would be the other way round.
    known = beliefs([mastered, learnable], 1)
    assert known["mastered"].gain > 2 * known["learnable"].gain


def test_where_the_thought_of_another_place_helps_as_much_there_is_nothing_to_learn() -> None:
    """Figures of a planted run: opening hours gain most, by whatever is said before them."""
    hours = region("hours", 0)
    hours.worths = [Worth(0.33 + 0.1 * (-1) ** n, 0.44, 0.2, 0.30, 1) for n in range(12)]
    desks = region("desks", 1)
    desks.worths = [Worth(0.12 + 0.1 * (-1) ** n, 0.22, 0.1, -0.15, 1) for n in range(12)]
    assert picked([hours, desks])["desks"] >= 380
    for found in (hours, desks):
        found.worths = [replace(w, elsewhere=0.0) for w in found.worths]
    assert picked([hours, desks])["desks"] <= 20  # what told them apart


def test_a_share_is_drawn_evenly_so_that_nothing_starves() -> None:
    regions = [region(f"bad {n}", n, *jittered(-0.05, 0.1, 10)) for n in range(4)]
    regions.append(region("good", 4, *jittered(0.2, 0.2, 10)))
    found = picked(regions, 2000, random_share=0.2)
    assert all(50 <= found[f"bad {n}"] <= 120 for n in range(4))  # 80 ± 4 σ
    known = beliefs(regions, 1)
    reasons = Counter(
        choose(regions, known, seed=3, number=n, random_share=0.2).why for n in range(2000)
    )
    assert 330 <= reasons["random"] <= 470


def test_even_draws_pass_over_what_surely_costs_until_the_next_growth() -> None:
    regions = [
        region("costs", 0, *jittered(-0.5, 0.1, 10)),
        region("two pages", 1, (-0.5, 0.1), (-0.5, 0.1)),  # too few to be sure
        region("good", 2, *jittered(0.2, 0.2, 10)),
    ]
    found = picked(regions, 1000, random_share=0.2)
    assert found["costs"] == 0
    assert 75 <= found["two pages"] <= 125  # half of the 200, and never for what they promise
    # The next growth's model is another one: nothing is sure of it yet.
    assert beliefs(regions, 1)["costs"].costs
    assert not beliefs(regions, 2)["costs"].costs
    # Where all pages are drawn evenly, what the model says of them is not asked.
    even = picked(regions, 900, random_share=1.0)
    assert all(240 <= count <= 360 for count in even.values()), even
    # Where thinking costs everywhere, some page has to be taken all the same.
    assert picked(regions[:1], 50, random_share=0.2)["costs"] == 50


def test_draws_are_functions_of_seed_and_number() -> None:
    regions = [region(f"r{n}", n, *jittered(0.02 * n, 0.1, 3)) for n in range(5)]
    known = beliefs(regions, 1)

    def series(seed: int) -> list[object]:
        return [choose(regions, known, seed=seed, number=n, random_share=0.1) for n in range(50)]

    assert series(1) == series(1)
    assert series(1) != series(2)
    # One region less to choose from does not change what the others draw.
    whole = choose(regions, known, seed=1, number=7, random_share=0.0)
    some = [r for r in regions if r.name == whole.region]
    assert choose(some, known, seed=1, number=7, random_share=0.0) == whole
    with pytest.raises(ValueError, match="no region"):
        choose([], known, seed=1, number=0, random_share=0.1)


def test_beliefs_are_means_behind_a_prior_of_one_page() -> None:
    trap = region("trap", 0, (-0.4, 0.2), (-0.6, 0.4), (-0.5, 0.3))
    below = region("below", 1, parent="trap")
    fresh = region("fresh", 2)
    dead = region("dead", 3, taken=3)
    dead.kept = 0
    found = beliefs([trap, below, fresh, dead], 1)
    assert found["trap"].gain == pytest.approx(-1.5 / 4)
    assert found["trap"].spread == pytest.approx((0.9 + 0.3) / 4)
    assert found["below"].gain == found["trap"].gain  # what hangs on a trap is taken for one
    assert found["fresh"].gain == 0.0
    assert found["trap"].gain_sd == pytest.approx(0.3 / 2)
    assert found["fresh"].gain_sd == pytest.approx(0.3)
    assert [found[name].yields for name in found] == [1.0, 1.0, 1.0, 0.25]
    # Two growths later its three pages count a quarter each.
    later = beliefs([trap], 3)["trap"]
    assert later.gain == pytest.approx(-1.5 * 0.25 / 1.75)
    assert later.gain_sd > found["trap"].gain_sd
