"""Simulated traffic of two versions, second by second, for simulations of rollouts.

The traffic is not stationary: its rate varies periodically, the rate of errors follows it, and
occasional incidents affect both versions equally. A test that assumes a constant base rate is wrong
here. Each version may also stall by itself: then many requests fail together, and a test that
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
_TOKEN_SPREAD: Final = 0.2
_LENGTH_SPREAD: Final = 0.8
CLASSES: Final = ("accept", "review", "refuse")
_SHARES: Final = (0.6, 0.3, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedBaseline:
    """Traffic, and the old version's errors and latency."""

    requests_per_s: float = 50.0
    weight: float = 0.1
    """Candidate's share, 0 to 1."""
    errors: float = 0.01
    rejections: float = 0.005
    median_s: float = 0.02
    """Median of the latency, which is log-normal with a p99 of 3.2 medians."""
    moves: bool = True
    """Whether the base rates vary."""
    period_s: float = 300.0
    """Period of the rate's variation."""
    bursts: bool = False
    """Whether each version stalls once in ten minutes, independently of the other: up to all of
    that second's requests take 14 times as long, and after every other stall they fail as well."""
    streams: bool = False
    """Whether answers are streams of tokens; `median_s` is then the time to the first."""
    per_token_s: float = 0.03
    """Median of the mean time of an output token, which is log-normal with a p99 of 1.6 medians."""
    output_tokens: float = 150.0
    """Median number of output tokens, which is log-normal with a p99 of 6.4 medians."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCandidate:
    """Differences of the new version."""

    name: str = "the same"
    more_errors: float = 0.0
    """Increase of the share of failed requests."""
    times_slower: float = 1.0
    """Factor on the latency of each request, and so on each quantile."""
    moved_answers: float = 0.0
    """Share of responses that change from the first class to the second."""
    times_slower_per_token: float = 1.0
    """Factor on the time of each output token."""
    times_longer: float = 1.0
    """Factor on the number of output tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedInterval:
    """One second of every run.

    Arms are baseline, candidate: `[2, runs]`.
    """

    requests: Array
    errors: Array
    rejections: Array
    classes: Array
    """Responses by class, `[2, runs, classes]`. `place` (arm times runs plus run) and `bucket`: of
    each request, `[requests]`."""
    cell: NDArray[np.int64]
    bucket: NDArray[np.int64]
    per_token: NDArray[np.int64]
    """Bucket of the time of an output token of each request, `[requests]`; empty without streams.
    """
    lengths: NDArray[np.int64]
    """Number of output tokens of each request, `[requests]`; empty without streams."""


@dataclass(slots=True, kw_only=True)
class TrafficDraws:
    """Generator of the seconds of many runs; `candidates` has one for each run."""

    world: SimulatedBaseline
    candidates: list[SimulatedCandidate]
    rng: np.random.Generator
    quantile: float = 0.99
    lower_s: Array = field(init=False)
    upper_s: Array = field(init=False)
    weights: Array = field(init=False)
    """Candidate's share in each run, which may be changed between seconds."""
    _phase: Array = field(init=False)
    _has_incident: NDArray[np.bool_] = field(init=False)
    _second: int = 0

    def __post_init__(self) -> None:
        self.lower_s, self.upper_s = two_digit_buckets(self.world.median_s, self.quantile)
        self.weights = np.full(len(self.candidates), self.world.weight)
        self._phase = self.rng.random(len(self.candidates))
        self._has_incident = np.zeros(len(self.candidates), bool)

    def next(self) -> SimulatedInterval:
        """Return the next second."""
        world, runs = self.world, len(self.candidates)
        load_cycle = self._swell()
        total = self.rng.poisson(world.requests_per_s * (1.0 + _SWELL * load_cycle))
        to_candidate = self.rng.binomial(total, self.weights)
        requests = np.stack([total - to_candidate, to_candidate])
        base = world.errors * (1.0 + _DRIFT * load_cycle) + _INCIDENT_ERRORS * self._has_incident
        more = np.array([c.more_errors for c in self.candidates])
        errors = self.rng.binomial(requests, np.clip(np.stack([base, base + more]), 0.0, 1.0))
        stalled = self._stalled() if world.bursts else None
        if stalled is not None:
            fails = stalled * (self.rng.random(stalled.shape) < 0.5)  # noqa: PLR2004  # every other
            errors += self.rng.binomial(requests - errors, fails)
        rejections = self.rng.binomial(requests - errors, world.rejections)
        cell, bucket = self._latencies(requests, load_cycle, stalled)
        per_token, lengths = self._tokens(cell) if world.streams else np.zeros((2, 0), np.int64)
        return SimulatedInterval(
            requests=requests.astype(float),
            errors=errors.astype(float),
            rejections=rejections.astype(float),
            classes=self._classes(requests - errors - rejections, runs),
            cell=cell,
            bucket=bucket,
            per_token=per_token,
            lengths=lengths,
        )

    def token_buckets(self) -> tuple[Array, Array]:
        """Return the edges of `SimulatedInterval.per_token`, lower and upper."""
        return two_digit_buckets(self.world.per_token_s, self.quantile)

    def _tokens(self, cell: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        runs = len(self.candidates)
        run, is_new = cell % runs, cell >= runs
        slower = np.array([c.times_slower_per_token for c in self.candidates])[run]
        longer = np.array([c.times_longer for c in self.candidates])[run]
        noise = self.rng.standard_normal((2, len(cell)))
        times = self.world.per_token_s * np.exp(_TOKEN_SPREAD * noise[0])
        lengths = self.world.output_tokens * np.exp(_LENGTH_SPREAD * noise[1])
        bucket = np.searchsorted(
            self.token_buckets()[1][:-1], np.where(is_new, slower, 1.0) * times, side="left"
        )
        return bucket, np.ceil(np.where(is_new, longer, 1.0) * lengths).astype(np.int64)

    def _swell(self) -> Array:
        """Return the variation of each run, -1 to 1; start and end incidents."""
        self._second += 1
        if not self.world.moves:
            return np.zeros(len(self.candidates))
        chance = self.rng.random(len(self.candidates))
        self._has_incident = np.where(
            self._has_incident, chance >= 1.0 / _INCIDENT_S, chance < 1.0 / _INCIDENT_EVERY_S
        )
        load_cycle: Array = np.sin(2.0 * np.pi * (self._second / self.world.period_s + self._phase))
        return load_cycle

    def _stalled(self) -> Array:
        """Return the part of this second's requests that a stall affects, `[arms, runs]`."""
        shape = (2, len(self.candidates))
        starts = self.rng.random(shape) < 1.0 / _STALL_EVERY_S
        part: Array = np.where(starts, self.rng.uniform(*_STALL_PART, size=shape), 0.0)
        return part

    def _classes(self, answers: NDArray[np.int64], runs: int) -> Array:
        moved = np.stack([np.zeros(runs), [c.moved_answers for c in self.candidates]])
        first = self.rng.binomial(answers, np.clip(_SHARES[0] - moved, 0.0, 1.0))
        of_rest = np.clip((_SHARES[1] + moved) / (1.0 - _SHARES[0] + moved), 0.0, 1.0)
        second = self.rng.binomial(answers - first, of_rest)
        return np.stack([first, second, answers - first - second], axis=-1).astype(float)

    def _latencies(
        self, requests: NDArray[np.int64], load_cycle: Array, stalled: Array | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        slower = np.array([c.times_slower for c in self.candidates])
        now = (1.0 + _SLOWER * load_cycle) * np.where(self._has_incident, _INCIDENT_FACTOR, 1.0)
        shift = np.log(self.world.median_s * np.stack([now, now * slower])).ravel()
        cell = np.repeat(np.arange(requests.size), requests.ravel())
        logs = self.rng.standard_normal(len(cell)) * LATENCY_SPREAD + shift[cell]
        if stalled is not None:
            is_hit = self.rng.random(len(cell)) < stalled.ravel()[cell]
            logs += math.log(_STALL_FACTOR) * is_hit
        # Buckets are (lower, upper]; latencies beyond the last edge are in the last bucket.
        return cell, np.searchsorted(np.log(self.upper_s[:-1]), logs, side="left")


def two_digit_buckets(median_s: float, quantile: float) -> tuple[Array, Array]:
    """Return the gateway's two-digit bucket edges, lower and upper, from well below the median."""
    about_s = median_s * math.exp(LATENCY_SPREAD * NormalDist().inv_cdf(quantile))
    edges = [digits * 10.0**exponent for exponent in range(-7, 5) for digits in range(10, 100)]
    upper = np.array([edge for edge in edges if 0.4 * median_s <= edge <= 4.0 * about_s])
    return np.array([0.0, *upper[:-1]]), upper
