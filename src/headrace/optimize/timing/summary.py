"""Latency statistics of windows: medians, ratios and their intervals.

Readings of a shared machine have no bell shape: a few are many times off. The sign test asks for
none: each reading is above the true median with probability one half, whatever the rest looks like,
and that alone says how often the median lies between two order statistics (Thompson, 1936). It
takes 6 readings for 95 %; fewer give Student's interval of the logarithms, which heavy tails on
both sides make wider, not wrong (Benjamini, 1983).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.random import Generator

from headrace.core import Array
from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing.measure import Window

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


Pair = tuple[Window, Window]


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A contender's times.

    `p50_s`: the median over windows of their medians; `p90_s` and `p99_s` of all readings. They are
    of the machine as it was; only `cut_ratio` is compared in like circumstances: the median over
    blocks of how much less a call took than the baseline's in the same block (0.6 for 60 % less,
    negative where slower). Intervals hold the truth with `confidence`; None where there is but one
    window. `throughput_per_s`: calls, one after the other. `windows`: those made, of which
    `disturbed_windows` were; `blocks`: those that the cut rests on. `samples`: readings that
    were used. `disturbed`: too few windows were quiet, so disturbed ones count too.
    """

    name: str
    p50_s: float
    p50_ci_s: Interval | None
    p90_s: float
    p99_s: float
    throughput_per_s: float
    cut_ratio: float
    cut_ci_ratio: Interval | None
    confidence: float
    blocks: int
    windows: int
    disturbed_windows: int
    samples: int
    disturbed: bool
    cold: bool

    @property
    def no_difference(self) -> bool:
        """Whether it may be as fast as the baseline, for all that was measured."""
        return self.cut_ci_ratio is None or self.cut_ci_ratio[0] <= 0 <= self.cut_ci_ratio[1]


def summarize(
    windows: Iterable[Window],
    *,
    baseline: str,
    rng: Generator,
    confidence: float = 0.95,
) -> dict[str, Timing]:
    """Times by name, of all contenders that were not dropped and share a block with the baseline.

    Raises:
        InvalidArgumentError: There is no window of the baseline, or some are hot and some cold.
    """
    made = _by_name(windows)
    if baseline not in made:
        raise InvalidArgumentError(
            f"the baseline '{baseline}' has no window that could be measured; "
            f"there are some of: {', '.join(made) or 'no contender'}"
        )
    if len({window.cold for group in made.values() for window in group}) > 1:
        raise InvalidArgumentError("windows with hot and with cold caches cannot be compared")
    found = {}
    for name, group in made.items():
        pairs = _pairs(group, made[baseline], least_count(confidence))
        if pairs:
            found[name] = _timing(name, group, pairs, rng=rng, confidence=confidence)
    return found


def _timing(
    name: str, group: Sequence[Window], pairs: Sequence[Pair], *, rng: Generator, confidence: float
) -> Timing:
    # One window of each block, in their order; quiet ones if `least` are.
    least = least_count(confidence)
    quiet = _by_block(group, is_quiet=True)
    found = quiet if len(quiet) >= least else _by_block(group)
    used = [found[block] for block in sorted(found)]
    readings = np.concatenate([window.latencies_s for window in used])
    p90_s, p99_s = np.quantile(readings, (0.9, 0.99))
    medians = np.array([window.p50_s for window in used])
    ratios = np.array([mine.p50_s / base.p50_s for mine, base in pairs])
    bounds = median_interval(ratios, confidence=confidence)
    return Timing(
        name=name,
        p50_s=float(np.median(medians)),
        p50_ci_s=drifting_median_interval(medians, rng=rng, confidence=confidence),
        p90_s=float(p90_s),
        p99_s=float(p99_s),
        throughput_per_s=float(np.median([1 / window.latencies_s.mean() for window in used])),
        cut_ratio=1 - float(np.median(ratios)),
        cut_ci_ratio=None if bounds is None else (1 - bounds[1], 1 - bounds[0]),
        confidence=confidence,
        blocks=len(pairs),
        windows=len(group),
        disturbed_windows=sum(window.disturbed for window in group),
        samples=readings.size,
        disturbed=any(window.disturbed for pair in [used, *pairs] for window in pair),
        cold=group[0].cold,
    )


def _by_name(windows: Iterable[Window]) -> dict[str, list[Window]]:
    """Those with readings, of contenders that were not dropped."""
    found: dict[str, list[Window]] = {}
    dropped = set()
    for window in windows:
        if window.error:
            dropped.add(window.name)
        elif window.readings:
            found.setdefault(window.name, []).append(window)
    return {name: group for name, group in found.items() if name not in dropped}


def _pairs(group: Sequence[Window], baseline: Sequence[Window], least: int) -> list[Pair]:
    """A contender's and the baseline's window of each block; quiet ones if `least` are."""
    quiet = _paired(_by_block(group, is_quiet=True), _by_block(baseline, is_quiet=True))
    if len(quiet) >= least:
        return quiet
    return _paired(_by_block(group), _by_block(baseline))


def _paired(mine: Mapping[int, Window], base: Mapping[int, Window]) -> list[Pair]:
    return [(mine[block], base[block]) for block in sorted(mine.keys() & base.keys())]


def _by_block(group: Sequence[Window], *, is_quiet: bool = False) -> dict[int, Window]:
    """The least disturbed window of each block."""
    found: dict[int, Window] = {}
    for window in group:
        if is_quiet and window.disturbed:
            continue
        other = found.setdefault(window.block, window)
        if (window.foreign_cores or 0.0) < (other.foreign_cores or 0.0):
            found[window.block] = window
    return found
