"""Confidence sequence of each metric over a rollout's life, in points.

A rollout may run for weeks, with one verdict per second, and the sequences are stored with each of
them. So points are at least a step apart, and the step doubles whenever there are too many points.
"""

import math
from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.rollout.betting import Array
from headrace.rollout.outcomes import MetricVerdict, RolloutVerdict

MAX_POINTS: Final = 120
FIRST_STEP_S: Final = 1.0
Narrow: TypeAlias = NDArray[np.float32]
"""Half as many bytes: six digits suffice for a chart."""

_LARGEST: Final = 1e30
_PARTS: Final = 4


class SequencePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Point of a metric: `at` in seconds since 1970, the other fields as in its verdict then.

    None for unknown values and missing bounds.
    """

    at: float
    effect: float | None
    low: float | None
    high: float | None
    margin: float | None


class MetricSequence(msgspec.Struct, kw_only=True):
    """Values of a metric in one unit; `values` are effect, low, high and margin, `[points, 4]`.

    A metric whose fixed threshold decides is reported in another unit from then on, so it has two.
    """

    metric: str
    unit: str
    values: Narrow


class Sequences(msgspec.Struct, kw_only=True):
    """Points at `times`, ascending; all but the newest are at least `step_s` apart.

    Every metric has a row for each of them.
    """

    times: Array
    step_s: float = FIRST_STEP_S
    metrics: list[MetricSequence] = []

    @classmethod
    def start(cls) -> "Sequences":
        """Return the state without points."""
        return cls(times=np.empty(0))

    def add(self, verdict: RolloutVerdict) -> None:
        """Add a verdict's intervals; the newest point is always stored.

        If the clock was set back, times do not decrease: the newest replaces the last point until
        the clock has caught up.
        """
        last = self.times[-2:].tolist()
        time = max([verdict.at, *last])
        # The newest point replaces its neighbour unless it is a whole step away from it.
        is_close = len(last) > 1 and last[1] - last[0] < self.step_s
        if is_close or last[-1:] == [time]:
            self._keep(np.arange(len(self.times)) < len(self.times) - 1)
        self._append(time, verdict)
        while len(self.times) > MAX_POINTS:
            self.step_s *= 2.0
            self._keep(_spaced(self.times, self.step_s))

    def points(self, sequence: MetricSequence) -> Iterator[SequencePoint]:
        """Yield the points of a metric from the first with values, oldest first."""
        has_value = ~np.isnan(sequence.values[:, :3]).all(axis=1)
        first = int(np.argmax(has_value)) if has_value.any() else len(sequence.values)
        for time, row in zip(self.times[first:].tolist(), sequence.values[first:], strict=True):
            effect, low, high, margin = (_read(value) for value in row)
            yield SequencePoint(at=time, effect=effect, low=low, high=high, margin=margin)

    def _append(self, time: float, verdict: RolloutVerdict) -> None:
        names = {(sequence.metric, sequence.unit) for sequence in self.metrics}
        for metric in verdict.metrics:
            # A metric that waits for its first values has no unit yet.
            if metric.unit and (metric.metric, metric.unit) not in names:
                values = np.full((len(self.times), _PARTS), np.nan, np.float32)
                new = MetricSequence(metric=metric.metric, unit=metric.unit, values=values)
                self.metrics.append(new)
        rows = {(metric.metric, metric.unit): _row(metric) for metric in verdict.metrics}
        nothing = np.full(_PARTS, np.nan, np.float32)
        self.times = np.append(self.times, time)
        for sequence in self.metrics:
            row = rows.get((sequence.metric, sequence.unit), nothing)
            sequence.values = np.vstack([sequence.values, row])

    def _keep(self, which: NDArray[np.bool_]) -> None:
        self.times = self.times[which]
        for sequence in self.metrics:
            sequence.values = sequence.values[which]


def _spaced(times: Array, step_s: float) -> NDArray[np.bool_]:
    """Return which points to keep so that they are `step_s` apart, with the first and newest."""
    is_selected = np.zeros(len(times), bool)
    last = -math.inf
    for i, time in enumerate(times.tolist()):
        if time - last >= step_s:
            is_selected[i] = True
            last = time
    is_selected[-1] = True
    return is_selected


def _row(metric: MetricVerdict) -> Narrow:
    values = (metric.effect, metric.low, metric.high, metric.margin)
    return np.array([_known(value) for value in values], np.float32)


def _known(value: float | None) -> float:
    is_known = value is not None and abs(value) <= _LARGEST  # neither infinite nor NaN
    return math.nan if value is None or not is_known else value


def _read(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(f"{value:.6g}")
