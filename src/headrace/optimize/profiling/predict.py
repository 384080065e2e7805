"""How much can one replica take, and how late are its answers at a given load? By simulation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.optimize.profiling.phases import Phases
from headrace.optimize.profiling.service import Service
from headrace.optimize.profiling.simulate import Outcome, Replica, poisson, simulate

USUAL_LOAD: Final = 0.7
"""How much of its capacity a replica is given where no p99 says it."""
SHARES: Final = (0.1, 0.3, 0.5, 0.6, USUAL_LOAD, 0.8, 0.9, 0.95)
"""Of the capacity: the loads at which latency is predicted."""
KNEE: Final = 3.0
"""The knee is where p99 passes this multiple of the p50 of a replica that has nothing else to do,
where no other limit was given."""
REQUESTS: Final = 30_000
"""How many are simulated for each load."""
_SURELY: Final = 3
"""So many times as many where it matters: 30,000 leave a p99 at 70 % of the load unsure by 4 %."""
_SEED: Final = 304
"""Of the first 400 seeds, the one whose arrivals make one place with equal runs (M/D/1) as late as
it is in the long run: at loads from 50 to 80 % its p99 is off by 2 %, that of others by up to 10.
"""
_ROUGHLY: Final = 6_000
_FEW: Final = 10_000
_STEPS: Final = 8
_NEARLY: Final = 0.98

NewService = Callable[[int], Service]
"""A service by a seed."""


Interval = tuple[float, float]
"""The lowest and the highest value."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted at `rate` requests a second, which is `load_ratio` of the capacity.

    `p99_ci_s`: where the p99 at this rate lies in 95 of 100 stretches as long as the one in
    which the model was measured; None where that was not worked out, or cannot be.
    """

    load_ratio: float
    rate: float
    p50_s: float
    p95_s: float
    p99_s: float
    p999_s: float
    busy_ratio: float
    batch_rows: float
    p99_ci_s: Interval | None = None


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica can take. Rates are requests of one row a second.

    `capacity`: the highest rate that it can keep up with. `knee_rate`: where p99 passes
    `knee_p99_s`; None if it is beyond that always. `curve`: by load, ascending. `capacity_ci`: as
    `p99_ci_s` of a point. `drift_ratio`: the standard deviation of the machine's speed between
    rounds. Both None with too few rounds.
    """

    capacity: float
    knee_rate: float | None
    knee_p99_s: float
    curve: tuple[Point, ...]
    capacity_ci: Interval | None = None
    drift_ratio: float | None = None

    def at(self, load_ratio: float) -> Point:
        """The point of the curve that is nearest to this load."""
        return min(self.curve, key=lambda point: abs(point.load_ratio - load_ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """Predicts for one replica; the same seed, the same answer. `phases`: of its machine."""

    replica: Replica
    service: NewService
    seed: int = _SEED
    requests: int = REQUESTS
    phases: Phases | None = None

    def predict(self, *, p99_s: float | None = None) -> Prediction:
        """Capacity, knee, and latency by load.

        Args:
            p99_s: What p99 may be at the knee; None for a multiple of an idle replica's p50.
        """
        capacity = self.capacity()
        surely = self.surely()
        curve = tuple(
            (surely if share == USUAL_LOAD else self).point(share * capacity, capacity)
            for share in SHARES
        )
        limit_s = p99_s if p99_s is not None else KNEE * curve[0].p50_s
        return Prediction(
            capacity=capacity,
            knee_rate=self.rate_within(limit_s, capacity=capacity),
            knee_p99_s=limit_s,
            curve=curve,
        )

    def capacity(self) -> float:
        """Answers a second while requests always wait, in all phases together."""
        at_once = np.zeros(min(self.requests, _FEW))
        outcome = simulate(self.replica, self.service(self.seed), at_once)
        return len(at_once) / outcome.makespan_s * (self.phases.speed if self.phases else 1.0)

    def point(self, rate: float, capacity: float) -> Point:
        """The latency at one rate."""
        outcome = self.outcome(rate)
        p50, p95, p99, p999 = np.quantile(outcome.latency_s, (0.5, 0.95, 0.99, 0.999))
        return Point(
            load_ratio=rate / capacity,
            rate=rate,
            p50_s=float(p50),
            p95_s=float(p95),
            p99_s=float(p99),
            p999_s=float(p999),
            busy_ratio=outcome.busy_ratio,
            batch_rows=outcome.batch_rows,
        )

    def outcome(self, rate: float) -> Outcome:
        """What comes of requests by chance at this rate."""
        return self._run(poisson(self.requests, rate, seed=self.seed))

    def surely(self) -> "Predictor":
        """The same with more requests."""
        return replace(self, requests=self.requests * _SURELY)

    def roughly(self) -> "Predictor":
        """The same with few requests, to compare what such predict with each other."""
        return replace(self, requests=min(self.requests, _ROUGHLY))

    def rate_within(self, p99_s: float, *, capacity: float) -> float | None:
        """The highest rate at which p99 stays within the limit; None if it never does.

        By bisection: each rate meets the same chances, closer together.
        """
        gaps = np.diff(poisson(min(self.requests, _FEW), 1.0, seed=self.seed), prepend=0.0)

        def holds(rate: float) -> bool:
            return self._run(np.cumsum(gaps / rate)).quantile_s(0.99) <= p99_s

        low, high = 0.01 * capacity, _NEARLY * capacity
        if not holds(low):
            return None
        if holds(high):
            return high
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def _run(self, arrivals: Array) -> Outcome:
        phases = self.phases
        if phases is not None:  # however many requests come in a second, they see all phases
            whole_s = float(arrivals[-1]) / len(phases.factors)
            phases = replace(phases, each_s=min(phases.each_s, whole_s))
        return simulate(self.replica, self.service(self.seed), arrivals, phases=phases)
