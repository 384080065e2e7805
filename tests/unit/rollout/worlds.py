"""Traffic that breaks what the tests assume, and a driver that watches many rollouts of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.core.spec.rollout import CanarySpec
from headrace.rollout.assignment import Assignments
from headrace.rollout.betting import Array
from headrace.rollout.simulate import SimulatedTests
from headrace.rollout.simulated_traffic import SimulatedCandidate, SimulatedInterval, TrafficDraws

SHARE_LEVEL = 0.001


@dataclass(slots=True, kw_only=True)
class Stalls(TrafficDraws):
    """Either arm stalls in a second of its own: a part of its requests takes 14 times as long."""

    every_s: float = 30.0
    fail: bool = False

    def _stalled(self) -> Array:
        shape = (2, len(self.candidates))
        begins = self.rng.random(shape) < 1.0 / self.every_s
        part: Array = np.where(begins, self.rng.uniform(0.2, 1.0, size=shape), 0.0)
        return part


@dataclass(slots=True, kw_only=True)
class Noisy(TrafficDraws):
    """The candidate's latency is multiplied by autocorrelated noise: exp(AR(1)), sd 0.2."""

    correlation: float = 0.9
    sd: float = 0.2
    _level: Array | None = None

    def next(self) -> SimulatedInterval:
        runs = len(self.candidates)
        fresh = self.rng.standard_normal(runs) * self.sd
        before = fresh if self._level is None else self._level
        self._level = self.correlation * before + math.sqrt(1 - self.correlation**2) * fresh
        self.candidates = [
            SimulatedCandidate(times_slower=math.exp(level)) for level in self._level
        ]
        return TrafficDraws.next(self)


@dataclass(slots=True, kw_only=True)
class TwoSpeeds(TrafficDraws):
    """A part of the requests is slow: 10 or 100 ms, within `jitter`; by arm which part.

    `factor`: how many times as long everything takes on the candidate.
    """

    slow: tuple[float, float] = (0.009, 0.013)
    jitter: float = 0.02
    factor: float = 1.0

    def __post_init__(self) -> None:
        TrafficDraws.__post_init__(self)
        edges = [digits * 10.0**exponent for exponent in (-3, -2, -1) for digits in range(10, 100)]
        self.upper_s = np.array(edges)
        self.lower_s = np.array([0.0, *edges[:-1]])

    def _latencies(
        self, requests: NDArray[np.int64], swell: Array, stalled: Array | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        del swell, stalled
        place = np.repeat(np.arange(requests.size), requests.ravel())
        arm = place // requests.shape[1]
        is_slow = self.rng.random(len(place)) < np.array(self.slow)[arm]
        seconds = np.where(is_slow, 0.1, 0.01) * np.where(arm == 1, self.factor, 1.0)
        seconds *= np.exp(self.jitter * self.rng.standard_normal(len(place)))
        return place, np.searchsorted(self.upper_s[:-1], seconds, side="left")


@dataclass(slots=True, kw_only=True)
class Untimed(TrafficDraws):
    """Requests without a latency, for a rollout that does not judge it: faster to draw."""

    def _latencies(
        self, requests: NDArray[np.int64], swell: Array, stalled: Array | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        del requests, swell, stalled
        return np.zeros(0, np.int64), np.zeros(0, np.int64)


@dataclass(slots=True, kw_only=True)
class OffSplit(TrafficDraws):
    """The candidate gets another share of the requests than planned."""

    got: float = 0.14

    def next(self) -> SimulatedInterval:
        planned = self.weights
        self.weights = np.full_like(planned, self.got)
        interval = TrafficDraws.next(self)
        self.weights = planned
        return interval


@dataclass(slots=True)
class Decided:
    """When each run was first rolled back and first promoted, in seconds; infinite for never."""

    rolled_back_s: Array
    promoted_s: Array
    metric: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, int))

    @property
    def rolled_back(self) -> float:
        """Share of the runs that were rolled back and not promoted before."""
        return float((self.rolled_back_s < self.promoted_s).mean())

    @property
    def promoted(self) -> float:
        """Share of the runs that were promoted and not rolled back before."""
        return float((self.promoted_s < self.rolled_back_s).mean())


def watch(
    traffic: TrafficDraws,
    settings: CanarySpec,
    seconds: int,
    *,
    before: Callable[[int, SimulatedTests], bool] = lambda _second, _watch: True,
    checks_share: bool = False,
) -> Decided:
    """Read every run once a second.

    Args:
        traffic: Of all runs.
        settings: Margins, alpha and `min_samples`.
        seconds: How long.
        before: Called before each second; may change the traffic. False while a promotion is not
            asked for, as in a step that only pauses.
        checks_share: Whether a split that was not kept makes the verdict wait.
    """
    tests, runs = SimulatedTests(settings, traffic), len(traffic.candidates)
    decided = Decided(np.full(runs, np.inf), np.full(runs, np.inf), np.full(runs, -1))
    samples, step = np.zeros((2, runs)), tests.step.copy()
    shares = [Assignments() for _ in range(runs if checks_share else 0)]
    for second in range(1, seconds + 1):
        asks = before(second, tests)
        samples[:, tests.step != step] = 0.0
        step = tests.step.copy()
        interval = traffic.next()
        tests.add(interval)
        samples += interval.requests
        worse, tolerated = tests.verdicts()
        back, on = np.array(worse.any(axis=0)), np.array(tolerated.all(axis=0) & asks)
        on &= samples.min(axis=0) >= settings.min_samples
        for run, assignments in enumerate(shares):
            baseline, candidate = interval.requests[:, run]
            assignments.add(float(traffic.weights[run]), int(baseline), int(candidate))
            if assignments.log_evidence() >= -math.log(SHARE_LEVEL):
                back[run] = on[run] = False
        first = back & np.isinf(decided.rolled_back_s)
        decided.metric[first] = np.argmax(worse, axis=0)[first]
        decided.rolled_back_s[first] = second
        decided.promoted_s[on & np.isinf(decided.promoted_s)] = second
    return decided
