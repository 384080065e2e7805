"""Between which values does a median lie, as a few noisy readings tell? Pure.

Readings of a shared machine have no bell shape: a few are many times off. The sign test asks for
none: each reading is above the true median with probability one half, whatever the rest looks like,
and that alone says how often the median lies between two order statistics (Thompson, 1936). It
takes 6 readings for 95 %; fewer give Student's interval of the logarithms, which heavy tails on
both sides make wider, not wrong (Benjamini, 1983).
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from headrace.core import Array

Interval = tuple[float, float]

_RESAMPLES: Final = 1000
_LEAST_FOR_STUDENT: Final = 2
_HALVINGS: Final = 200


def least_count(confidence: float) -> int:
    """How many readings it takes until the least and the largest bound the median so surely."""
    return math.ceil(1 - math.log2(1 - confidence))


def median_interval(values: Array, *, confidence: float) -> Interval | None:
    """Order statistics that hold the median with at least `confidence`; None for fewer than 2.

    Args:
        values: Positive where fewer than `least_count`, for their logarithms are taken.
    """
    if values.size < least_count(confidence):
        return _student_interval(values, confidence)
    ordered = np.sort(values)
    rank = _rank(values.size, confidence)
    return float(ordered[rank]), float(ordered[-1 - rank])


def drifting_median_interval(
    values: Array, *, rng: np.random.Generator, confidence: float
) -> Interval | None:
    """An interval of the median of readings that follow each other and may drift.

    Neighbours are resampled together, in runs of the cube root of their number (the circular block
    bootstrap of Politis and Romano, 1992): where readings stay high for a while, as they do while
    the processor is slow, there are fewer of them than it seems.
    """
    count = values.size
    if count < least_count(confidence):
        return _student_interval(values, confidence)
    run = math.ceil(count ** (1 / 3))
    starts = rng.integers(0, count, size=(_RESAMPLES, math.ceil(count / run)))
    places = (starts[:, :, None] + np.arange(run)) % count
    resampled = values[places.reshape(_RESAMPLES, -1)[:, :count]]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(resampled, axis=1), (tail, 1 - tail))
    return float(low), float(high)


def student_quantile(probability: float, freedom: int) -> float:
    """Student's t at a probability above one half, by halving (Abramowitz and Stegun, 26.7.3)."""
    low, high = 0.0, 1.0
    while _student_share(high, freedom) < probability:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _student_share(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _rank(count: int, confidence: float) -> int:
    """How many of the least and of the largest readings may be left out of the interval."""
    outside, rank = 0.0, -1
    for i in range(count // 2):
        outside += 2 * math.comb(count, i) / 2**count
        if outside > 1 - confidence:
            break
        rank = i
    return max(rank, 0)


def _student_interval(values: Array, confidence: float) -> Interval | None:
    count = values.size
    if count < _LEAST_FOR_STUDENT:
        return None
    logs = np.log(values)
    reach = student_quantile((1 + confidence) / 2, count - 1) * logs.std(ddof=1) / math.sqrt(count)
    return _exp(float(logs.mean() - reach)), _exp(float(logs.mean() + reach))


def _exp(power: float) -> float:
    """The exponential, held to what a float can say: two readings may tell next to nothing."""
    return math.exp(min(max(power, -700.0), 700.0))


def _student_share(t: float, freedom: int) -> float:
    """The probability of a value below a positive `t`."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        terms = _terms(cosine, [2 * i / (2 * i + 1) for i in range(1, (freedom - 1) // 2)], cosine)
        inside = 2 / math.pi * (angle + (sine * terms if freedom > 1 else 0.0))
    else:
        terms = _terms(1.0, [(2 * i - 1) / (2 * i) for i in range(1, freedom // 2)], cosine)
        inside = sine * terms
    return (1 + inside) / 2


def _terms(first: float, factors: Sequence[float], cosine: float) -> float:
    """`first`, and what each factor and a squared cosine make of the term before, added up."""
    total = term = first
    for factor in factors:
        term *= factor * cosine**2
        total += term
    return total
