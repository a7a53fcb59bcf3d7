"""The maths behind the alarms: robust outliers, and a fall from one half of a window to the next.

Plain numbers in and out. What a window may hold is decided in `rntp.training.alarms`.
"""

import math
import statistics
from collections.abc import Sequence

# Median absolute deviation → standard deviation, for a normal distribution.
MAD_TO_STD = 1.4826
# Least spread, as a share of the median: among nearly equal values a ripple is no alarm.
LEAST_SPREAD = 0.1


def spread(values: Sequence[float]) -> float:
    """Standard deviation by the median absolute deviation: nearly half of `values` may be wild."""
    middle = statistics.median(values)
    return MAD_TO_STD * statistics.median(abs(v - middle) for v in values)


def above(value: float, values: Sequence[float]) -> float:
    """Measure how far `value` lies above the median of `values`, in spreads.

    The spread is at least LEAST_SPREAD of the median's size. Infinite where all values are 0 and
    `value` is above.
    """
    middle = statistics.median(values)
    scale = max(spread(values), LEAST_SPREAD * abs(middle))
    distance = value - middle
    if scale == 0:
        return math.inf if distance > 0 else 0.0
    return distance / scale


def fall(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the earlier half less that of the later half, and the same in standard errors.

    The error is Welch's, sqrt(s1² / n1 + s2² / n2). At least two values in each half.
    """
    half = len(values) // 2
    earlier, later = values[:half], values[half:]
    size = statistics.fmean(earlier) - statistics.fmean(later)
    error = math.sqrt(
        statistics.variance(earlier) / len(earlier) + statistics.variance(later) / len(later)
    )
    if error == 0:
        return size, math.copysign(math.inf, size) if size else 0.0
    return size, size / error
