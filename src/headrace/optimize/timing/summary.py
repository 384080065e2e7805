"""Latency statistics of windows: medians, ratios and their intervals.

Readings of a shared machine are not normal: some are outliers. The sign test assumes no
distribution: each reading is above the true median with probability one half, which alone gives the
probability that the median lies between two order statistics (Thompson, 1936). It takes 6 readings
for 95 %; fewer give Student's interval of the logarithms, which heavy tails on both sides make
wider, not wrong (Benjamini, 1983).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.random import Generator

from headrace.core import Array
from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing.measure import CallWindow

Interval = tuple[float, float]
CONFIDENCE: Final = 0.95
MIN_COUNT: Final = 6
"""Least readings whose minimum and maximum bound the median with this confidence."""
_STUDENT: Final = (12.7062, 4.3027, 3.1824, 2.7764)
"""Student's t at 97.5 % for 1 to 4 degrees of freedom, for fewer readings."""
_RESAMPLES: Final = 1000


def median_interval(values: Array) -> Interval | None:
    """Return order statistics that bound the median; None for fewer than 2 values.

    Args:
        values: Positive if fewer than `MIN_COUNT`, as their logarithms are used.
    """
    count = values.size
    if count < MIN_COUNT:
        return _student_interval(values)
    ordered = np.sort(values)
    # Number of the least and of the largest readings that the interval may omit.
    outside = np.cumsum([2 * math.comb(count, i) / 2**count for i in range(count // 2)])
    rank = max(int(np.searchsorted(outside, 1 - CONFIDENCE, side="right")) - 1, 0)
    return float(ordered[rank]), float(ordered[-1 - rank])


def drifting_median_interval(values: Array, *, rng: np.random.Generator) -> Interval | None:
    """Return an interval of the median of consecutive readings that may drift.

    Neighbours are resampled together, in runs of the cube root of their number (the circular block
    bootstrap of Politis and Romano, 1992): readings that stay high for a while, such as while the
    processor is slow, are fewer independent ones than their count.
    """
    count = values.size
    if count < MIN_COUNT:
        return _student_interval(values)
    run = math.ceil(count ** (1 / 3))
    starts = rng.integers(0, count, size=(_RESAMPLES, math.ceil(count / run)))
    locations = (starts[:, :, None] + np.arange(run)) % count
    resampled = values[locations.reshape(_RESAMPLES, -1)[:, :count]]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(resampled, axis=1), (tail, 1 - tail))
    return float(low), float(high)


def _student_interval(values: Array) -> Interval | None:
    count = values.size
    if count < 2:  # noqa: PLR2004  # one reading gives no interval
        return None
    logs = np.log(values)
    reach = _STUDENT[count - 2] * logs.std(ddof=1) / math.sqrt(count)
    # Clipped to the range of a float: two readings may carry almost no information.
    low, high = np.exp(np.clip((logs.mean() - reach, logs.mean() + reach), -700.0, 700.0))
    return float(low), float(high)


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Timing statistics of a candidate.

    Absolute times depend on the machine's load; only the saving is measured under equal conditions.
    Intervals are 95 % confidence intervals; None with a single window.
    """

    name: str
    p50_s: float
    """Median over windows of their medians."""
    p50_ci_s: Interval | None
    p90_s: float
    """90 % quantile of all readings."""
    p99_s: float
    throughput_per_s: float
    """Sequential calls per second."""
    cut_ratio: float
    """Median over blocks of the time saved: 0.6 for 60 % less than the baseline."""
    cut_ci_ratio: Interval | None
    blocks: int
    """Number of blocks behind `cut_ratio`."""
    disturbed: bool
    """Whether disturbed windows count, as too few were quiet."""

    @property
    def no_difference(self) -> bool:
        """Whether the difference to the baseline is not significant."""
        return self.cut_ci_ratio is None or self.cut_ci_ratio[0] <= 0 <= self.cut_ci_ratio[1]


def summarize(windows: Iterable[CallWindow], *, baseline: str, rng: Generator) -> dict[str, Timing]:
    """Return timings of all candidates that were not dropped and share a block with the baseline.

    Raises:
        InvalidArgumentError: The baseline has no window, or hot and cold windows are mixed.
    """
    groups: dict[str, list[CallWindow]] = {}
    dropped = set()
    for window in windows:
        if window.error:
            dropped.add(window.name)
        elif window.readings:
            groups.setdefault(window.name, []).append(window)
    groups = {name: group for name, group in groups.items() if name not in dropped}
    if baseline not in groups:
        raise InvalidArgumentError(
            f"the baseline '{baseline}' has no measured window; "
            f"measured: {', '.join(groups) or 'no candidate'}"
        )
    if len({window.cold for group in groups.values() for window in group}) > 1:
        raise InvalidArgumentError("windows with hot and with cold caches cannot be compared")
    timings = {name: _timing(name, group, groups[baseline], rng) for name, group in groups.items()}
    return {name: timing for name, timing in timings.items() if timing is not None}


def _timing(
    name: str, group: Sequence[CallWindow], baseline: Sequence[CallWindow], rng: Generator
) -> Timing | None:
    """Return a candidate's timing; None without a block shared with the baseline."""
    # One window of each block, in order; quiet ones if there are enough.
    everything, quiet = _by_block(group), _by_block(group, is_quiet=True)
    selected = quiet if len(quiet) >= MIN_COUNT else everything
    used = [selected[block] for block in sorted(selected)]
    pairs = _paired(quiet, _by_block(baseline, is_quiet=True))
    if len(pairs) < MIN_COUNT:
        pairs = _paired(everything, _by_block(baseline))
    if not pairs:
        return None
    p90_s, p99_s = np.quantile(np.concatenate([w.latencies_s for w in used]), (0.9, 0.99))
    medians = np.array([window.p50_s for window in used])
    ratios = np.array([own.p50_s / base.p50_s for own, base in pairs])
    bounds = median_interval(ratios)
    return Timing(
        name=name,
        p50_s=float(np.median(medians)),
        p50_ci_s=drifting_median_interval(medians, rng=rng),
        p90_s=float(p90_s),
        p99_s=float(p99_s),
        throughput_per_s=float(np.median([1 / window.latencies_s.mean() for window in used])),
        cut_ratio=1 - float(np.median(ratios)),
        cut_ci_ratio=None if bounds is None else (1 - bounds[1], 1 - bounds[0]),
        blocks=len(pairs),
        disturbed=any(window.disturbed for pair in [used, *pairs] for window in pair),
    )


def _paired(
    own: Mapping[int, CallWindow], base: Mapping[int, CallWindow]
) -> list[tuple[CallWindow, CallWindow]]:
    return [(own[block], base[block]) for block in sorted(own.keys() & base.keys())]


def _by_block(group: Sequence[CallWindow], *, is_quiet: bool = False) -> dict[int, CallWindow]:
    """Return the least disturbed window of each block."""
    least_disturbed: dict[int, CallWindow] = {}
    for window in group:
        if is_quiet and window.disturbed:
            continue
        other = least_disturbed.setdefault(window.block, window)
        if (window.foreign_cores or 0.0) < (other.foreign_cores or 0.0):
            least_disturbed[window.block] = window
    return least_disturbed
