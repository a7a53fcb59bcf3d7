"""The arithmetic of the table: pure functions of numbers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Curve = list[tuple[int, float]]
"""(step, value)."""

# Student's t at 0.975 for 1 … 30 degrees of freedom.
# fmt: off
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Summary:
    """One number over the seeds of an arm. sd: of the sample (n − 1); None for a single seed."""

    mean: float
    sd: float | None
    n: int
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean over seeds of an arm minus the reference. ci95: None for a single seed."""

    mean: float
    ci95: tuple[float, float] | None
    n: int


def summarize(values: Sequence[float]) -> Summary | None:
    """None without values."""
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), sd, len(values), min(values), max(values))


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> Difference | None:
    """values − reference over the seeds that both have, with the 95 % t-interval of its mean.

    None if they share no seed.
    """
    differences = [value - reference[seed] for seed, value in values.items() if seed in reference]
    if not differences:
        return None
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return Difference(mean, None, n)
    half = t_975(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, (mean - half, mean + half), n)


def t_975(freedom: int) -> float:
    """Student's t at 0.975. Above 30 degrees of freedom that of 30, at most 4 % too wide."""
    return _T_975[min(freedom, len(_T_975)) - 1]


def running_mean(curve: Curve, steps: int) -> Curve:
    """Each value replaced by the mean of the last `steps` values up to it."""
    values = [value for _, value in curve]
    return [
        (step, statistics.fmean(values[max(0, i + 1 - steps) : i + 1]))
        for i, (step, _) in enumerate(curve)
    ]


def band(curves: Sequence[Curve]) -> list[tuple[int, float, float, float]]:
    """(step, mean, lowest, highest) over the curves, at the steps that all of them have."""
    if not curves:
        return []
    by_step = [dict(curve) for curve in curves]
    shared = sorted(set(by_step[0]).intersection(*by_step[1:]))
    rows = [(step, [values[step] for values in by_step]) for step in shared]
    return [(step, statistics.fmean(row), min(row), max(row)) for step, row in rows]
