"""The simulation against what can be worked out by hand."""

import math

import pytest

from rntp.errors import ConfigError
from rntp.plan.simulate import Outcome, Run, simulate


def accounted(found: Outcome) -> float:
    return found.useful_s + found.again_s + found.waiting_s + found.saving_s + found.restarting_s


def test_alone_a_run_is_its_steps_and_saves() -> None:
    found = simulate(Run(steps=100, train_s=2.0, rollout_s=1.0, save_s=5.0, every_steps=10))
    assert found.wall_s == pytest.approx(100 * 3.0 + 10 * 5.0)
    assert found.goodput == pytest.approx(300 / 350)
    assert found.ages == []
    assert found.steps == 100


def test_enough_samplers_hide_the_rollouts() -> None:
    """Two shares a step, a wave of 1.9 s, steps of 1 s: age 2 needs four samplers."""
    four = simulate(Run(200, 1.0, samplers=4, shares=2, wave_s=1.9, most_age=2))
    assert four.waiting_s == pytest.approx(1.9, abs=0.2)  # for the first ones alone
    assert four.wall_s == pytest.approx(201.9, abs=0.2)
    assert max(four.ages) == 2
    assert four.mean_age == pytest.approx(2.0, abs=0.05)
    two = simulate(Run(200, 1.0, samplers=2, shares=2, wave_s=1.9, most_age=2))
    assert two.wall_s == pytest.approx(200 * 1.9, rel=0.01)
    assert two.waiting_s == pytest.approx(200 * 0.9, rel=0.02)
    assert two.busy == pytest.approx(1.0, abs=0.01)


def test_no_thought_is_older_than_allowed() -> None:
    for age in (0, 1, 3):
        found = simulate(Run(50, 1.0, samplers=8, shares=1, wave_s=0.5, most_age=age))
        assert max(found.ages) == age
    # Of age 0 the trainer waits for every wave.
    alone = simulate(Run(50, 1.0, samplers=8, shares=1, wave_s=0.5, most_age=0))
    assert alone.wall_s == pytest.approx(50 * 1.5)


def test_stragglers_cost_where_others_wait_for_them() -> None:
    """A step needs the slowest of 16 shares: the mean of maxima, not the mean."""
    even = Run(300, 0.01, samplers=16, shares=16, wave_s=1.0, most_age=0)
    slow = Run(300, 0.01, samplers=16, shares=16, wave_s=1.0, most_age=0, straggle=0.3)
    ratio = simulate(slow).wall_s / simulate(even).wall_s
    # E max of 16 lognormal(0, 0.3): exp(0.3 · 1.77) without its spread, 1.8 with it.
    assert 1.6 < ratio < 2.0


def test_failures_cost_what_young_says() -> None:
    """Lost on average: half an interval and a restart a failure."""
    run = Run(20_000, 1.0, save_s=2.0, every_steps=60, trainer_fails_s=900.0, restart_s=30.0)
    found = simulate(run)
    assert accounted(found) == pytest.approx(found.wall_s, rel=0.02)
    interval = 60 + 2.0
    each = (2.0 + (interval / 2 + 30.0) * interval / 900.0) / interval
    assert found.wall_s / 20_000 == pytest.approx((1 + each) * 1.0, rel=0.05)
    assert found.failures == pytest.approx(found.wall_s / 900, rel=0.2)
    rare = simulate(Run(20_000, 1.0, save_s=2.0, every_steps=60))
    assert rare.failures == 0
    assert rare.again_s == 0
    assert rare.wall_s < found.wall_s


def test_a_sampler_that_is_lost_gives_its_share_back() -> None:
    run = Run(300, 1.0, samplers=4, shares=2, wave_s=1.0, most_age=3, sampler_fails_s=20.0)
    found = simulate(run)
    assert found.steps == 300
    assert found.lost_waves > 5
    assert found.wall_s > 300
    assert simulate(Run(300, 1.0, samplers=4, shares=2, wave_s=1.0, most_age=3)).lost_waves == 0


def test_a_run_that_never_gets_on_is_given_up() -> None:
    run = Run(1000, 1.0, every_steps=500, trainer_fails_s=50.0, restart_s=10.0)
    found = simulate(run)
    assert found.steps < 1000
    assert math.isfinite(found.wall_s)


def test_a_simulation_is_a_function_of_its_seed() -> None:
    run = Run(200, 1.0, samplers=3, shares=3, wave_s=2.0, straggle=0.2, trainer_fails_s=100.0)
    assert simulate(run, seed=1) == simulate(run, seed=1)
    assert simulate(run, seed=1) != simulate(run, seed=2)
    with pytest.raises(ConfigError, match="a step or more"):
        simulate(Run(0, 1.0))
