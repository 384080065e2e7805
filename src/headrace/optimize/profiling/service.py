"""Run times drawn from what was measured, in the phases of the machine.

By the rounds, each of which saw all cells in one phase of the machine. What differs between rounds
in all cells alike is the machine; what differs in one cell alone is chance.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec
import numpy as np

from headrace.core import Array
from headrace.optimize.profiling.messages import Cell

LEAST_ROUNDS: Final = 4
"""With fewer nothing is said about drift."""


_STRETCHES: Final = LEAST_ROUNDS
_STUDENT: Final = 3.182
"""Student's t of 97.5 % with one degree of freedom less than there are stretches."""
_STUDENT_MANY: Final = 2.0
"""The same for all rounds, about."""
_LARGEST: Final = math.log(10.0)
_LEAST_FACTOR: Final = 0.1
_NORMAL: Final = 1.4826
"""A normal standard deviation, over the median distance from the middle."""
_MEDIAN: Final = 1.57
"""The variance of a median of normal values, over that of their mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """The machine's phases, one after the other, over and over.

    `factors`: the time of a run in each, over the mean of all. `each_s`: how long one lasts.
    `next_ratio`: another stretch as long as all of them takes, in 95 of 100, at most so many times
    as long for its runs as this one, or as many times less.
    """

    factors: tuple[float, ...]
    each_s: float
    next_ratio: float = 1.0

    @property
    def speed(self) -> float:
        """The work done in all of them, over that at a factor of one."""
        return float(np.mean(1.0 / np.asarray(self.factors)))

    def times(self, factor: float, *, swing: float = 1.0) -> "Phases":
        """A machine that takes so many times as long in all of them, and varies so much more."""
        varied = [max(1.0 + (one - 1.0) * swing, _LEAST_FACTOR) for one in self.factors]
        return replace(self, factors=tuple(one * factor for one in varied))

    @property
    def spread_ratio(self) -> float:
        """The standard deviation of the factors."""
        return float(np.std(self.factors))


def find_phases(cells: Iterable[Cell]) -> Phases | None:
    """The phases by cells that were measured in the same rounds; None with too few rounds."""
    found = [cell for cell in cells if len(cell.rounds) >= LEAST_ROUNDS]
    if not found:
        return None
    times = _relative(found)
    factors: Array = np.median(times, axis=0)  # a run that was held up is not the machine's phase
    factors = factors / factors.mean()
    next_ratio = _next_ratio(factors)
    varies = float(factors.var(ddof=1))
    if len(found) > 1 and varies > 0.0:
        # Between cells of one round there is chance alone, some of which is left in their median.
        apart = np.abs(times / factors - 1.0)
        chance = (_NORMAL * float(np.median(apart))) ** 2 * _MEDIAN / (len(found) - 1)
        factors = 1.0 + (factors - 1.0) * max(1.0 - chance / varies, 0.0) ** 0.5
    began_s = [one.at_s for one in found[0].rounds]
    return Phases(
        factors=tuple(float(one) for one in factors),
        each_s=max(float(np.median(np.diff(began_s))), 1e-3),
        next_ratio=next_ratio,
    )


def _next_ratio(factors: Array) -> float:
    """By Student's interval of the means of a few stretches, twice their variance.

    Phases last longer than a round, so that rounds are no independent readings: whole rounds drawn
    again by chance (a bootstrap) held the truth in half of the cases where phases lasted a tenth of
    the measurement, and these intervals in 95 of 100. Twice, as the next stretch varies as this one
    does. Never less than if rounds were independent: a few stretches may be alike by chance.
    """
    logs = np.log(factors)
    means = [float(part.mean()) for part in np.array_split(logs, _STRETCHES)]
    error = _STUDENT * float(np.std(means, ddof=1)) / math.sqrt(_STRETCHES)
    independent = _STUDENT_MANY * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return math.exp(min(max(error, independent) * math.sqrt(2.0), _LARGEST))


def without_drift(cell: Cell, phases: Phases | None) -> Cell:
    """The cell as it is in each phase: its runs vary by less than those of all phases together."""
    if phases is None or not cell.rounds:
        return cell
    samples = np.asarray(cell.samples_s)
    whole = float(samples.var()) / cell.mean_s**2
    share = max(1.0 - phases.spread_ratio**2 / whole, 0.0) ** 0.5 if whole > 0.0 else 1.0
    steady = cell.mean_s + (samples - cell.mean_s) * share
    return msgspec.structs.replace(cell, samples_s=tuple(float(one) for one in steady))


def _relative(cells: Sequence[Cell]) -> Array:
    """The mean of each round over the mean of all, `[cells, rounds]`."""
    least = min(len(cell.rounds) for cell in cells)
    times = np.array([[one.mean_s for one in cell.rounds[:least]] for cell in cells])
    relative: Array = times / times.mean(axis=1, keepdims=True)
    return relative


_DRAWS: Final = 1 << 14


class Service(Protocol):
    """Times of runs."""

    def run_s(self, rows: int, busy: int, idle_s: float) -> float:
        """Seconds of one more run of `rows`, with which `busy` are under way.

        `idle_s`: for how long nothing was before it began; 0 where something ran until then.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """What was measured with so many runs at once. `spreads`: for each size, time over mean."""

    rows: tuple[int, ...]
    mean_s: tuple[float, ...]
    spreads: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pauses:
    """What runs take after a pause, over what they take without: by its length, ascending."""

    lengths_s: tuple[float, ...]
    ratios: tuple[float, ...]
    spreads: tuple[tuple[float, ...], ...]


class MeasuredService:
    """Draws from cells of one length and number of threads.

    Between two batch sizes that were measured, means lie on a line and the spread is that of the
    nearer one; beyond the largest, time grows with rows. Between two pauses that were measured it
    is the same; a longer pause than all of them is like the longest. Seeded: the same draws every
    time.
    """

    def __init__(self, cells: Iterable[Cell], *, seed: int) -> None:
        cells = list(cells)
        by_runs: dict[int, list[Cell]] = {}
        for cell in cells:
            by_runs.setdefault(cell.runs, []).append(cell)
        assert by_runs, "nothing was measured"
        self._levels = {runs: _level(found) for runs, found in sorted(by_runs.items())}
        self._known = tuple(self._levels)
        self._nearest: dict[int, _Level] = {}
        self._tables: dict[tuple[int, int], tuple[float, tuple[float, ...]]] = {}
        self._pauses = _pauses(cells)
        rng = random.Random(seed)  # noqa: S311  # a simulation
        self._draws = [rng.random() for _ in range(_DRAWS)]
        self._next = 0

    def mean_s(self, rows: int, busy: int) -> float:
        """The mean of `run_s`."""
        return self._table(rows, busy)[0]

    def run_s(self, rows: int, busy: int, idle_s: float = 0.0) -> float:
        """Seconds of one more run of `rows`, with which `busy` are under way."""
        mean, spread = self._table(rows, busy)
        if idle_s > 0.0 and busy == 1 and self._pauses is not None:
            ratio, spread = _after(self._pauses, idle_s)
            mean *= ratio
        self._next = place = (self._next + 1) % _DRAWS
        return mean * spread[int(self._draws[place] * len(spread))]

    def _table(self, rows: int, busy: int) -> tuple[float, tuple[float, ...]]:
        key = (rows, busy)
        found = self._tables.get(key)
        if found is None:
            level = self._level_for(busy)
            found = self._tables[key] = (_mean(level, rows), _spread(level, rows))
        return found

    def _level_for(self, busy: int) -> _Level:
        level = self._nearest.get(busy)
        if level is None:
            above = [runs for runs in self._known if runs >= busy]
            level = self._nearest[busy] = self._levels[min(above) if above else self._known[-1]]
        return level


def _level(cells: Sequence[Cell]) -> _Level:
    ordered = sorted(cells, key=lambda cell: cell.rows)
    return _Level(
        rows=tuple(cell.rows for cell in ordered),
        mean_s=tuple(cell.mean_s for cell in ordered),
        spreads=tuple(
            tuple(sample / cell.mean_s for cell_mean in (cell.mean_s,) for sample in cell.samples_s)
            for cell in ordered
        ),
    )


def _pauses(cells: Sequence[Cell]) -> _Pauses | None:
    """By the smallest batch, with which a replica that idled begins; None if nothing is known."""
    known = [cell for cell in cells if cell.paused and cell.runs == 1]
    if not known:
        return None
    cell = min(known, key=lambda one: one.rows)
    found = sorted(cell.paused, key=lambda one: one.pause_s)
    return _Pauses(
        lengths_s=tuple(one.pause_s for one in found),
        ratios=tuple(one.mean_s / cell.mean_s for one in found),
        spreads=tuple(tuple(sample / one.mean_s for sample in one.samples_s) for one in found),
    )


def _after(pauses: _Pauses, idle_s: float) -> tuple[float, tuple[float, ...]]:
    lengths = pauses.lengths_s
    above = bisect_left(lengths, idle_s)
    if above == len(lengths):
        return pauses.ratios[-1], pauses.spreads[-1]
    low_s, low = (lengths[above - 1], pauses.ratios[above - 1]) if above else (0.0, 1.0)
    share = (idle_s - low_s) / (lengths[above] - low_s)
    nearest = above if share >= 0.5 or not above else above - 1  # noqa: PLR2004  # the nearer one
    return low + share * (pauses.ratios[above] - low), pauses.spreads[nearest]


def _mean(level: _Level, rows: int) -> float:
    sizes, means = level.rows, level.mean_s
    if rows >= sizes[-1]:
        return means[-1] * rows / sizes[-1]
    if rows <= sizes[0]:
        return means[0]
    above = next(place for place, size in enumerate(sizes) if size >= rows)
    low, high = sizes[above - 1], sizes[above]
    share = (rows - low) / (high - low)
    return means[above - 1] + share * (means[above] - means[above - 1])


def _spread(level: _Level, rows: int) -> tuple[float, ...]:
    nearest = min(range(len(level.rows)), key=lambda place: abs(level.rows[place] - rows))
    return level.spreads[nearest]
