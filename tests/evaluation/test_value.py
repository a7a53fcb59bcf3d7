"""Bound of K thoughts, bits per byte, net gain: numbers by hand."""

import math

import numpy as np
import pytest

from rntp.evaluation.value import bits_per_byte, bounds_by_thoughts, net_gain


def at(empty: list[float], *think: list[float], num_bytes: int = 8, tokens: int = 4) -> dict:
    return {
        "logp_empty": empty,
        "num_bytes": num_bytes,
        "thoughts": [{"logp_think": each, "num_tokens": tokens} for each in think],
    }


def test_the_bound_is_of_the_mean_probability_of_the_whole_continuation() -> None:
    """p = 1/2 and 1/8 over two tokens: −ln(5/16) / 2 together, −ln(1/4) / 2 one by one."""
    positions = [at([-1.0, -1.0], [math.log(1 / 2), 0.0], [math.log(1 / 4), math.log(1 / 2)])]
    one, two = bounds_by_thoughts(positions, np.array([0]), seed=0)
    assert (one["thoughts"], two["thoughts"]) == (1, 2)
    assert one["nll/think"] == pytest.approx(math.log(4) / 2)
    assert two["nll/think"] == pytest.approx(-math.log(5 / 16) / 2)
    assert two["gain"] == pytest.approx(1 + math.log(5 / 16) / 2)
    assert one["below_single"] == pytest.approx(0)
    assert two["below_single"] == pytest.approx(math.log(4) / 2 + math.log(5 / 16) / 2)


def test_the_bound_tightens_with_k_and_not_where_thoughts_are_alike() -> None:
    generator = np.random.Generator(np.random.Philox(key=0))
    logp = -generator.exponential(2, size=(40, 8, 3))
    positions = [at([-2.0] * 3, *each.tolist()) for each in logp]
    rows = bounds_by_thoughts(positions, np.arange(40), seed=0)
    assert [row["thoughts"] for row in rows] == [1, 2, 4, 8]
    losses = [row["nll/think"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert rows[-1]["below_single_ci95"][0] > 0
    assert rows[0]["nll/think"] == pytest.approx(-logp.mean())
    # A hopeless thought among eight costs log(8/7) at most.
    alike = [at([-2.0] * 3, *[[-1.0] * 3] * 6) for _ in range(4)]
    rows = bounds_by_thoughts(alike, np.arange(4), seed=0)
    assert [row["thoughts"] for row in rows] == [1, 2, 4]
    assert [row["nll/think"] for row in rows] == pytest.approx([1, 1, 1])


def test_log_probs_far_below_the_smallest_float_do_not_break_the_bound() -> None:
    row = bounds_by_thoughts([at([-1.0], [-2000.0], [-1.0])], np.array([0]), seed=0)[1]
    assert row["nll/think"] == pytest.approx(1 + math.log(2))


def test_bits_per_byte_is_a_ratio_of_sums() -> None:
    """Not a mean of ratios: the long continuation counts for more."""
    two = math.log(2)
    positions = [
        at([-4 * two, -4 * two], [-2 * two, -2 * two], num_bytes=2),
        at([-1 * two, -1 * two], [-1 * two, -1 * two], num_bytes=8),
    ]
    found = bits_per_byte(positions, np.array([0, 1]), seed=0)
    assert found["num_bytes"] == 10
    assert found["no_think"] == pytest.approx((8 + 2) / 10)
    assert found["think"] == pytest.approx((4 + 2) / 10)
    assert found["saved"] == pytest.approx(0.4)
    # Resamples are the first twice, both, or the second twice.
    assert found["saved_ci95"] == pytest.approx([0.0, 2.0])


def test_net_gain_takes_the_price_of_its_tokens() -> None:
    two = math.log(2)
    positions = [
        at([-3 * two], [-1 * two], [-2 * two], tokens=10),
        at([-3 * two], [-3 * two], [-3 * two], tokens=2),
    ]
    found = net_gain(positions, np.array([0, 1]), seed=0, price=0.1)
    assert found["bits_saved"] == pytest.approx(0.75)
    assert found["thought_tokens"] == 6
    assert found["net"] == pytest.approx(0.75 - 0.6)
    assert found["net_ci95"] == pytest.approx([-0.2, 0.5])
    assert found["break_even"] == pytest.approx(0.125)
    assert net_gain(positions, np.array([0, 1]), 0, price=0)["net"] == pytest.approx(0.75)
    harmful = [at([-1.0], [-2.0])]
    assert net_gain(harmful, np.array([0]), 0, price=0.1)["break_even"] is None
    silent = [at([-1.0], [-1.0], tokens=0)]
    assert net_gain(silent, np.array([0]), 0, price=0.1)["break_even"] is None
