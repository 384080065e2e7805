"""How did the machine's speed vary while it was measured, and how else will it? Pure.

By the rounds, each of which saw all cells in one phase of the machine. What differs between rounds
in all cells alike is the machine; what differs in one cell alone is chance.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

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
