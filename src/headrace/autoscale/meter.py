"""Signals from counters, summed over the last observations, so that rare requests count."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from headrace.autoscale.state import Signals
from headrace.core.spec.scale import AutoscaleSpec

_P99: Final = 0.99
_P99_WINDOWS: Final = 2.0
_ENOUGH: Final = 100
"""Minimum number of requests for a p99; with fewer, the stable window is used."""
_FEW: Final = 20


class IntervalCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts between two observations, over all replicas that reported."""

    seconds: float
    """Seconds between the observations."""

    arrived: float

    answered: int

    busy_s: float
    """Busy seconds of each replica's busiest part, summed over the replicas."""

    run_s: float
    """Run time, summed over the completed requests."""

    wait_s: float
    """Queue wait, summed over the completed requests."""

    latencies: tuple[int, ...] = ()
    """Requests by bucket of `bounds_s`, with one more bucket for larger values."""

    bounds_s: tuple[float, ...] = ()

    latency_s: float = 0.0
    """Sum of the latencies, 0 if unknown."""


@dataclass(slots=True)
class Meter:
    """Observations of one arm within a stable window. Not persistent."""

    _looks: deque[tuple[float, IntervalCounts]]

    @classmethod
    def new(cls) -> "Meter":
        """Return a meter without observations."""
        return cls(deque())

    def signals(
        self,
        counts: IntervalCounts | None,
        settings: AutoscaleSpec,
        *,
        now: float,
        ready: int,
        starting: int = 0,
        in_flight: float | None = None,
        concurrency: int = 1,
        held: int = 0,
        is_partial: bool = False,
    ) -> Signals:
        """Return the signals of this observation.

        Args:
            counts: Counts since the last observation; None if unknown.
        """
        while self._looks and not now - settings.stable_window_s < self._looks[0][0] <= now:
            self._looks.popleft()
        if counts is not None:
            self._looks.append((now, counts))
        observations = [observation for _, observation in self._looks]
        answered = sum(observation.answered for observation in observations)
        return Signals(
            observed_at=now,
            ready=ready,
            starting=starting,
            in_flight=in_flight,
            arrivals=None if counts is None else counts.arrived / counts.seconds,
            queue_wait_s=_ratio(counts.wait_s, counts.answered) if counts else None,
            p99_s=None if counts is None else self._p99(settings, now),
            service_s=_ratio(sum(observation.busy_s for observation in observations), answered),
            run_s=_ratio(sum(observation.run_s for observation in observations), answered),
            concurrency=concurrency,
            held=held,
            is_partial=is_partial,
        )

    def _p99(self, settings: AutoscaleSpec, now: float) -> float | None:
        recent_s = now - _P99_WINDOWS * settings.panic_window_s
        recent = [observation for looked_at, observation in self._looks if looked_at > recent_s]
        if sum(observation.answered for observation in recent) >= _ENOUGH:
            return _quantile(recent)
        observations = [observation for _, observation in self._looks]
        return (
            _quantile(observations)
            if sum(observation.answered for observation in observations) >= _FEW
            else None
        )


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None


def _quantile(observations: Sequence[IntervalCounts]) -> float | None:
    bounds = next(
        (observation.bounds_s for observation in reversed(observations) if observation.bounds_s), ()
    )
    comparable = [observation for observation in observations if observation.bounds_s == bounds]
    counts = [
        sum(column)
        for column in zip(*(observation.latencies for observation in comparable), strict=True)
    ]
    return quantile(
        bounds, counts, _P99, total_s=sum(observation.latency_s for observation in comparable)
    )


def quantile(
    bounds_s: Sequence[float], counts: Sequence[int], q: float, *, total_s: float = 0.0
) -> float | None:
    """Return the quantile `q` (0 to 1) of a histogram, linear within its bucket.

    None without counts. Values above the last bound count as equal to it.

    Args:
        total_s: The sum of all values, 0 if unknown. It locates nearly equal values within a
            bucket: a model that always takes 0.105 s has no p99 of 0.15 s, though its bucket ends
            there.
    """
    total = sum(counts)
    if not total:
        return None
    rank, counted, lower = q * total, 0.0, 0.0
    for index, (bound, count) in enumerate(zip(bounds_s, counts, strict=False)):
        if count and counted + count >= rank:
            upper = _highest(bounds_s, counts, index, total_s)
            return lower + (upper - lower) * (rank - counted) / count
        counted += count
        lower = bound
    return bounds_s[-1] if bounds_s else None


def _highest(bounds_s: Sequence[float], counts: Sequence[int], index: int, total_s: float) -> float:
    """Return the upper end of a bucket's values, spread evenly and consistent with the sum.

    All other values are at least at their bucket's start; the rest of the sum bounds the mean.
    """
    edges = (0.0, *bounds_s)
    lower, upper = edges[index], edges[index + 1]
    others_s = sum(c * edges[i] for i, c in enumerate(counts) if i != index)
    mean = (total_s - others_s) / counts[index]
    return min(upper, 2.0 * mean - lower) if mean > lower else upper
