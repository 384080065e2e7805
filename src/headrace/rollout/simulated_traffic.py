"""Made-up traffic of two versions, second by second, for simulations of rollouts.

Nothing here is still: traffic swells and ebbs, the rate of errors follows it, and now and then
comes an incident that strikes both versions alike. A test that takes the base rate for constant is
wrong here. And each version may stall by itself: then many requests go wrong together, and whoever
counts them as independent is wrong.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.rollout.betting import Array

_SWELL: Final = 0.5
_DRIFT: Final = 0.8
_SLOWER: Final = 0.3
_INCIDENT_EVERY_S: Final = 200.0
_INCIDENT_S: Final = 10.0
_INCIDENT_ERRORS: Final = 0.05
_INCIDENT_FACTOR: Final = 2.0
_STALL_EVERY_S: Final = 600.0
_STALL_PART: Final = (0.2, 1.0)
_STALL_FACTOR: Final = 14.0
LATENCY_SPREAD: Final = 0.5
CLASSES: Final = ("accept", "review", "refuse")
_SHARES: Final = (0.6, 0.3, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedBaseline:
    """The traffic, and how the old version fares."""

    requests_per_s: float = 50.0
    weight: float = 0.1
    """The candidate's share, 0 to 1."""
    errors: float = 0.01
    rejections: float = 0.005
    median_s: float = 0.02
    """Of the latency, which is log-normal with a p99 of 3.2 medians."""
    moves: bool = True
    """Whether the base rates do."""
    period_s: float = 300.0
    """Of the swell."""
    bursts: bool = False
    """Whether either version stalls once in ten minutes, in a second of its own: up to all of that
    second's requests take 14 times as long, and after every other stall they fail as well.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCandidate:
    """How the new version differs."""

    name: str = "the same"
    more_errors: float = 0.0
    """Added to the share of failed requests."""
    times_slower: float = 1.0
    """Each request, so each quantile."""
    moved_answers: float = 0.0
    """Share of answers that change from the first class to the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedInterval:
    """One second of every run.

    Arms are baseline, candidate: `[2, runs]`.
    """

    requests: Array
    errors: Array
    rejections: Array
    classes: Array
    """`[2, runs, classes]`. `place` (arm times runs plus run) and `bucket`: of each request,
    `[requests]`.
    """
    cell: NDArray[np.int64]
    bucket: NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class TrafficDraws:
    """Draws the seconds of many runs at once; `candidates` has one for each run."""

    world: SimulatedBaseline
    candidates: list[SimulatedCandidate]
    rng: np.random.Generator
    quantile: float = 0.99
    lower_s: Array = field(init=False)
    upper_s: Array = field(init=False)
    weights: Array = field(init=False)
    """The candidate's share in each run, which may be changed between seconds."""
    _phase: Array = field(init=False)
    _has_incident: NDArray[np.bool_] = field(init=False)
    _second: int = 0

    def __post_init__(self) -> None:
        self.lower_s, self.upper_s = two_digit_buckets(self.world.median_s, self.quantile)
        self.weights = np.full(len(self.candidates), self.world.weight)
        self._phase = self.rng.random(len(self.candidates))
        self._has_incident = np.zeros(len(self.candidates), bool)

    def next(self) -> SimulatedInterval:
        """The next second."""
        world, runs = self.world, len(self.candidates)
        swell = self._swell()
        total = self.rng.poisson(world.requests_per_s * (1.0 + _SWELL * swell))
        to_candidate = self.rng.binomial(total, self.weights)
        requests = np.stack([total - to_candidate, to_candidate])
        base = world.errors * (1.0 + _DRIFT * swell) + _INCIDENT_ERRORS * self._has_incident
        more = np.array([c.more_errors for c in self.candidates])
        errors = self.rng.binomial(requests, np.clip(np.stack([base, base + more]), 0.0, 1.0))
        stalled = self._stalled() if world.bursts else None
        if stalled is not None:
            fails = stalled * (self.rng.random(stalled.shape) < 0.5)  # noqa: PLR2004  # every other
            errors += self.rng.binomial(requests - errors, fails)
        rejections = self.rng.binomial(requests - errors, world.rejections)
        cell, bucket = self._latencies(requests, swell, stalled)
        return SimulatedInterval(
            requests=requests.astype(float),
            errors=errors.astype(float),
            rejections=rejections.astype(float),
            classes=self._classes(requests - errors - rejections, runs),
            cell=cell,
            bucket=bucket,
        )

    def _swell(self) -> Array:
        """-1 to 1 for each run; and incidents come and go."""
        self._second += 1
        if not self.world.moves:
            return np.zeros(len(self.candidates))
        chance = self.rng.random(len(self.candidates))
        self._has_incident = np.where(
            self._has_incident, chance >= 1.0 / _INCIDENT_S, chance < 1.0 / _INCIDENT_EVERY_S
        )
        swell: Array = np.sin(2.0 * np.pi * (self._second / self.world.period_s + self._phase))
        return swell

    def _stalled(self) -> Array:
        """Which part of this second's requests a stall hits, `[arms, runs]`; mostly none."""
        shape = (2, len(self.candidates))
        begins = self.rng.random(shape) < 1.0 / _STALL_EVERY_S
        part: Array = np.where(begins, self.rng.uniform(*_STALL_PART, size=shape), 0.0)
        return part

    def _classes(self, answers: NDArray[np.int64], runs: int) -> Array:
        moved = np.stack([np.zeros(runs), [c.moved_answers for c in self.candidates]])
        first = self.rng.binomial(answers, np.clip(_SHARES[0] - moved, 0.0, 1.0))
        of_rest = np.clip((_SHARES[1] + moved) / (1.0 - _SHARES[0] + moved), 0.0, 1.0)
        second = self.rng.binomial(answers - first, of_rest)
        return np.stack([first, second, answers - first - second], axis=-1).astype(float)

    def _latencies(
        self, requests: NDArray[np.int64], swell: Array, stalled: Array | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        slower = np.array([c.times_slower for c in self.candidates])
        now = (1.0 + _SLOWER * swell) * np.where(self._has_incident, _INCIDENT_FACTOR, 1.0)
        shift = np.log(self.world.median_s * np.stack([now, now * slower])).ravel()
        cell = np.repeat(np.arange(requests.size), requests.ravel())
        logs = self.rng.standard_normal(len(cell)) * LATENCY_SPREAD + shift[cell]
        if stalled is not None:
            is_hit = self.rng.random(len(cell)) < stalled.ravel()[cell]
            logs += math.log(_STALL_FACTOR) * is_hit
        # In (lower, upper]; what is beyond the last edge is in the last bucket.
        return cell, np.searchsorted(np.log(self.upper_s[:-1]), logs, side="left")


def two_digit_buckets(median_s: float, quantile: float) -> tuple[Array, Array]:
    """Lower and upper edges as the gateway has them, two digits, from well below the median."""
    about_s = median_s * math.exp(LATENCY_SPREAD * NormalDist().inv_cdf(quantile))
    edges = [digits * 10.0**exponent for exponent in range(-7, 5) for digits in range(10, 100)]
    upper = np.array([edge for edge in edges if 0.4 * median_s <= edge <= 4.0 * about_s])
    return np.array([0.0, *upper[:-1]]), upper
