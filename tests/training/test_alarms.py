"""Alarms: the maths in closed form, when they speak, and that a resume changes nothing."""

import math

import pytest

from rntp.training.alarm_maths import above, fall, spread
from rntp.training.alarms import QUIET, STREAK, WARM_UP, WINDOW, Alarms


def test_spread_is_that_of_a_normal_and_ignores_what_is_wild() -> None:
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(1.4826)  # deviations 2 1 0 1 2
    assert spread([1, 2, 3, 4, 1e9]) == pytest.approx(1.4826)
    assert spread([7, 7, 7]) == 0


def test_above_counts_spreads() -> None:
    assert above(3 + 2 * 1.4826, [1, 2, 3, 4, 5]) == pytest.approx(2)
    assert above(3 - 1.4826, [1, 2, 3, 4, 5]) == pytest.approx(-1)
    assert above(150, [100, 100, 100]) == pytest.approx(5)  # the least spread, a tenth
    assert above(1, [0, 0, 0]) == math.inf
    assert above(0, [0, 0, 0]) == 0


def test_fall_is_welchs() -> None:
    size, errors = fall([3, 5, 1, 3])  # means 4 and 2, variances 2 and 2
    assert size == 2
    assert errors == pytest.approx(2 / math.sqrt(2 / 2 + 2 / 2))
    assert fall([1, 3, 3, 5])[0] == -2
    assert fall([2, 2, 1, 1]) == (1, math.inf)
    assert fall([1, 1, 1, 1]) == (0, 0)


def row(step: int, **more: float) -> dict[str, float]:
    """A healthy step: values that ripple."""
    ripple = math.sin(step * 1.7)
    return {
        "step": step,
        "skipped": 0,
        "loss/total": 1 + 0.1 * ripple,
        "grad_norm": 2 + 0.3 * ripple,
        "gain/mean": 0.2 + 0.05 * ripple,
        "group/dead_frac": 0.1,
        "thought/tokens_mean": 12.0,
        **{key.replace("__", "/"): value for key, value in more.items()},
    }


def observe(alarms: Alarms, rows: list[dict[str, float]]) -> list[tuple[int, str]]:
    return [(int(r["step"]), line) for r in rows for line in alarms.observe(r)]


def test_a_healthy_run_is_quiet() -> None:
    assert observe(Alarms(), [row(n) for n in range(1, 400)]) == []


def test_a_jump_is_said_once_and_not_before_the_warm_up() -> None:
    early = Alarms()
    rows = [row(n) for n in range(1, WARM_UP)]
    assert observe(early, [*rows, row(WARM_UP, grad_norm=100.0)]) == []
    alarms = Alarms()
    rows = [row(n) for n in range(1, 31)]
    said = observe(alarms, [*rows, *(row(n, grad_norm=100.0) for n in range(31, 34))])
    assert [step for step, _ in said] == [31]
    assert "grad_norm jumped to 100" in said[0][1]
    assert "optim.lr" in said[0][1]
    again = [row(n) for n in range(34, 31 + QUIET)]
    assert observe(alarms, [*again, row(31 + QUIET, loss__total=50.0, grad_norm=100.0)]) != []


def test_skipped_and_non_finite_steps_leave_no_trace() -> None:
    clean, poisoned = Alarms(), Alarms()
    for n in range(1, 41):
        assert clean.observe(row(n)) == []
        assert poisoned.observe(row(n)) == []
        assert poisoned.observe(row(n, skipped=1, grad_norm=math.inf)) == []
    for name, tensor in clean.tensors().items():
        assert tensor.equal(poisoned.tensors()[name]), name
    assert poisoned.observe(row(41, loss__total=math.nan, grad_norm=math.nan)) == []
    assert len(poisoned.observe(row(42, grad_norm=1e6))) == 1


def test_dead_groups_and_empty_thoughts_need_a_streak() -> None:
    for more, word in (
        ({"group__dead_frac": 1.0}, "learns nothing"),
        ({"thought__tokens_mean": 0.4}, "thinking has collapsed"),
    ):
        alarms = Alarms()
        assert observe(alarms, [row(n, **more) for n in range(1, STREAK)]) == []
        assert observe(alarms, [row(STREAK)]) == []
        said = observe(alarms, [row(n, **more) for n in range(11, 11 + STREAK + 5)])
        assert [(step, word in text) for step, text in said] == [(10 + STREAK, True)]


def test_a_falling_gain_is_told_from_a_rippling_one() -> None:
    rows = [row(n, gain__mean=0.5 - 0.01 * n + 0.05 * math.sin(n)) for n in range(1, WINDOW + 1)]
    ((step, text),) = observe(Alarms(), rows)
    assert step == WINDOW
    assert "fallen by 0.3" in text
    rising = [row(n, gain__mean=0.01 * n) for n in range(1, 2 * WINDOW)]
    assert observe(Alarms(), rising) == []


def test_a_resume_says_the_same() -> None:
    rows = [row(n, grad_norm=100.0 if n == 60 else 2 + 0.1 * math.sin(n)) for n in range(1, 150)]
    whole, first, second = Alarms(), Alarms(), Alarms()
    said = observe(whole, rows)
    assert [step for step, _ in said] == [60]
    before = observe(first, rows[:59])
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()})
    assert before + observe(second, rows[59:]) == said
    for name, tensor in whole.tensors().items():
        assert tensor.equal(second.tensors()[name]), name
