"""Intervals over repetitions, and the search for the largest rate that keeps an objective."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

# Student's t at 97.5 %, by degrees of freedom from 1; past the last the normal distribution's.
# fmt: off
_T: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)
# fmt: on
_NORMAL: Final = 1.960


class Interval(NamedTuple):
    """A mean and its 95 % interval; both bounds are not a number where one value says nothing."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent repetitions.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        msg = "no repetitions: there is nothing to take an interval of"
        raise ValueError(msg)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    freedom = len(values) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
    reach = t * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach)


def ratio_interval(values: Sequence[float]) -> Interval:
    """The same of ratios: of their logarithms, so that twice and half weigh the same.

    Raises:
        ValueError: There are no values, or one is not above 0.
    """
    if any(value <= 0 for value in values):
        msg = f"ratios must be above 0, not {min(values)}"
        raise ValueError(msg)
    return Interval(*map(math.exp, interval([math.log(value) for value in values])))


def largest(holds: Callable[[float], bool], *, low: float, high: float, probes: int) -> float:
    """The largest rate for which `holds`, up to a factor of `(high / low) ** 0.5 ** probes`.

    Bisects the logarithm; `low` is not tried. A system holds at every rate below one that it holds.

    Returns:
        The largest rate that held, `low` if none did.

    Raises:
        ValueError: The bounds are not above 0 and in order.
    """
    if not 0 < low < high:
        msg = f"cannot search between {low} and {high}: rates are above 0 and in order"
        raise ValueError(msg)
    for _ in range(probes):
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
