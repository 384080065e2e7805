"""What do windows say about a contender: how fast, how much faster, how sure? Pure."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.random import Generator

from headrace.core.errors import InvalidArgumentError
from headrace.optimize.timing.intervals import (
    Interval,
    drifting_median_interval,
    least_count,
    median_interval,
)
from headrace.optimize.timing.window import Window

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
    used = _chosen(group, least_count(confidence))
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


def _chosen(group: Sequence[Window], least: int) -> list[Window]:
    """One window of each block, in their order; quiet ones if `least` are."""
    quiet = _by_block(group, is_quiet=True)
    found = quiet if len(quiet) >= least else _by_block(group)
    return [found[block] for block in sorted(found)]


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
