"""How often would a rollout be decided, rightly or wrongly, and after how long? By trying it.

Many rollouts are watched at once, each read at every second, with the tests of `evidence`: the
same classes, one test for each run where `Evidence` has one. A test holds both together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core.rollout_settings import CanarySettings
from headrace.rollout.bernoulli import log_evidence_each
from headrace.rollout.betting import Array
from headrace.rollout.judge import is_worse
from headrace.rollout.latency_ratio import (
    WINDOW_TAILS,
    Reach,
    threshold_named,
    threshold_well_below,
    thresholds_near,
    tolerated_evidence,
)
from headrace.rollout.naive import z_test_rejects
from headrace.rollout.prediction_shift import ENOUGH, levels, parts
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.turn import Turn
from headrace.rollout.world import CLASSES, Candidate, Interval, Traffic, World

_METRICS: Final = ("errors", "rejections", "latency", "predictions")
_MOST_REQUESTS: Final = 400_000
"""Drawn at once; more runs than make that are simulated one part after the other."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the runs of one candidate. Times are simulated seconds, ascending.

    `rolled_back_s` and `promoted_s`: when each run was decided. `ever_rolled_back_s`: when a
    reading first said roll back, also after a promotion. `naive_s`: when a z test of the errors
    alone, read as often, first told the versions apart. `naive_at_the_end`: how many runs it told
    apart when read once, at the end. `by_metric`: how many runs each metric rolled back.
    """

    candidate: str
    runs: int
    requests_per_s: float
    rolled_back_s: tuple[float, ...]
    promoted_s: tuple[float, ...]
    ever_rolled_back_s: tuple[float, ...]
    naive_s: tuple[float, ...]
    naive_at_the_end: int
    by_metric: dict[str, int]

    @property
    def rolled_back(self) -> float:
        """Share of the runs."""
        return len(self.rolled_back_s) / self.runs

    @property
    def promoted(self) -> float:
        """Share of the runs."""
        return len(self.promoted_s) / self.runs

    @property
    def undecided(self) -> float:
        """Share of the runs."""
        return 1.0 - self.rolled_back - self.promoted

    @property
    def median_s(self) -> float | None:
        """When half of the runs were decided; None if fewer ever were."""
        ended = sorted([*self.rolled_back_s, *self.promoted_s])
        middle = (self.runs + 1) // 2
        return ended[middle - 1] if len(ended) >= middle else None


@dataclass(slots=True)
class Watch:
    """The tests of many runs at once."""

    settings: CanarySettings
    traffic: Traffic
    _errors: RateDifferences = field(init=False)
    _rejections: RateDifferences = field(init=False)
    _slower: RateDifferences = field(init=False)
    _faster: RateDifferences = field(init=False)
    _classes: RateDifferences = field(init=False)
    _held: Array = field(init=False)
    _turns: tuple[Turn, Turn, Turn] = field(init=False)
    _recent: Array = field(init=False)
    _reach: Reach = field(init=False)
    _bounded: Array = field(init=False)

    def __post_init__(self) -> None:
        runs, metrics = len(self.traffic.candidates), self.settings.metrics
        assert all(getattr(metrics, name) is not None for name in _METRICS)
        assert metrics.errors is not None
        assert metrics.rejections is not None
        assert metrics.latency is not None
        tolerated = (metrics.errors.margin, metrics.rejections.margin, 0.0)
        errors, rejections, latency = (Turn.start(runs, margin) for margin in tolerated)
        self._turns = errors, rejections, latency
        centre = round(10 * (1.0 - metrics.latency.quantile))
        self._errors = RateDifferences.start(runs, watched=metrics.errors.margin)
        self._rejections = RateDifferences.start(runs, watched=metrics.rejections.margin)
        self._slower = RateDifferences.start(runs, centre=centre, watched=0.0)
        self._faster = RateDifferences.start(runs, centre=centre)
        self._reach = Reach(metrics.latency.margin_ratio, metrics.latency.margin_s)
        self._bounded = np.zeros((2, 2, runs))
        self._classes = RateDifferences.start(runs * len(CLASSES))
        self._held = np.zeros((2, runs, len(CLASSES)))
        self._recent = np.zeros((runs, len(self.traffic.upper_s)))

    def add(self, interval: Interval) -> None:
        """Count one second."""
        _add(self._errors, self.traffic.weights, interval.errors, interval.requests)
        _add(self._rejections, self.traffic.weights, interval.rejections, interval.requests)
        _add(self._turns[0], self.traffic.weights, interval.errors, interval.requests)
        _add(self._turns[1], self.traffic.weights, interval.rejections, interval.requests)
        self._add_classes(interval)
        self._add_latency(interval)

    def verdicts(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which metrics say roll back, and which say promote, `[metrics, runs]`."""
        metrics, needed = self.settings.metrics, -np.log(self.settings.alpha)
        assert metrics.errors is not None
        assert metrics.rejections is not None
        assert metrics.predictions is not None
        level = self.settings.alpha / len(_METRICS)
        harms = (self._errors, self._rejections, self._slower)
        worse = [
            is_worse(tests.log_evidence_of_harm(), turn.log_evidence(), level)
            for tests, turn in zip(harms, self._turns, strict=True)
        ]
        within = [
            self._errors.log_evidence(metrics.errors.margin, above=False) >= needed,
            self._rejections.log_evidence(metrics.rejections.margin, above=False) >= needed,
            self._latency_tolerated() >= needed,
        ]
        tolerated = [t & ~w for w, t in zip(worse, within, strict=True)]
        margin, by_class = metrics.predictions.margin, (-1, len(CLASSES))
        each = -np.log(levels(level, len(CLASSES)) / 2.0)
        rose = self._classes.log_evidence(margin, above=True).reshape(by_class)
        fell = self._classes.log_evidence(-margin, above=False).reshape(by_class)
        rose_less = self._classes.log_evidence(margin, above=False).reshape(by_class)
        fell_less = self._classes.log_evidence(-margin, above=True).reshape(by_class)
        worse.append(np.asarray(((rose >= each) | (fell >= each)).any(-1)))
        tolerated.append(np.asarray(((rose_less >= needed) & (fell_less >= needed)).all(-1)))
        return np.stack(worse), np.stack(tolerated)

    def _add_classes(self, interval: Interval) -> None:
        self._held += interval.classes
        answers = self._held.sum(-1)
        enough = (answers >= ENOUGH).all(axis=0)
        part = np.stack(parts(self.traffic.weights, *np.maximum(answers, 1.0))) * enough
        by_class = (self._held * part[..., None]).reshape(2, -1)
        total = np.repeat(answers * part, len(CLASSES), axis=-1)
        _add(self._classes, np.repeat(self.traffic.weights, len(CLASSES)), by_class, total)
        self._held[:, enough] = 0.0

    def _add_latency(self, interval: Interval) -> None:
        latency = self.settings.metrics.latency
        assert latency is not None
        named = threshold_named(self._recent, latency.quantile)
        if named.any():
            near, near_reach = thresholds_near(
                self.traffic.upper_s,
                self._recent,
                quantile=latency.quantile,
                reaches=(Reach(), self._reach),
            )
            low = threshold_well_below(
                self.traffic.lower_s, self._recent, quantile=latency.quantile
            )
            slower, total = self._over(interval, near, whole=False)
            faster, _ = self._over(interval, near_reach, whole=True)
            # Above the lower edge of a bucket is what is in it: no bucket is across it.
            bounded, _ = self._over(interval, low, whole=True)
            total = total * named
            _add(self._slower, self.traffic.weights, slower * named, total)
            _add(self._turns[2], self.traffic.weights, slower * named, total)
            _add(self._faster, self.traffic.weights, faster * named, total)
            self._bounded += np.stack([bounded * named, total], axis=1)
        self._remember(interval, 1.0 / (1.0 - latency.quantile))

    def _latency_tolerated(self) -> Array:
        latency = self.settings.metrics.latency
        assert latency is not None
        share = 1.0 - latency.quantile
        (low, of_a), (reach, of_b) = self._bounded
        return tolerated_evidence(
            self._faster.log_evidence(0.0, above=False),
            log_evidence_each(low, of_a, share, above=True),
            log_evidence_each(reach, of_b, share, above=False),
        )

    def _over(self, interval: Interval, tau: Array, *, whole: bool) -> tuple[Array, Array]:
        """How many exceed `tau`, or the candidate's its reach, and how many there are.

        Both `[arms, runs]`, as `Histogram.above`: a bucket across the candidate's threshold counts
        as above it if `whole`.
        """
        tau_a, tau_b, runs, upper = tau, self._reach(tau), len(tau), self.traffic.upper_s
        # The last bucket that is not above.
        last_a = np.searchsorted(upper, tau_a * (1 - 1e-6))
        last_b = (
            np.searchsorted(upper, tau_b * (1 + 1e-6), side="right") - 1
            if whole
            else np.searchsorted(upper, tau_b * (1 - 1e-6))
        )
        is_over = interval.bucket > np.concatenate([last_a, last_b])[interval.place]
        over = np.bincount(interval.place, weights=is_over, minlength=2 * runs)
        total = np.bincount(interval.place, minlength=2 * runs)
        return over.reshape(2, runs).astype(float), total.reshape(2, runs).astype(float)

    def _remember(self, interval: Interval, tail: float) -> None:
        runs, buckets = self._recent.shape
        ours = interval.place < runs
        seen = np.bincount(
            interval.place[ours] * buckets + interval.bucket[ours], minlength=self._recent.size
        ).reshape(self._recent.shape)
        fades = self._recent.sum(-1) > WINDOW_TAILS * tail
        self._recent = self._recent * np.where(fades, 0.5, 1.0)[:, None] + seen


def simulate(
    world: World,
    candidates: Sequence[Candidate],
    settings: CanarySettings,
    *,
    runs: int,
    duration_s: int,
    rng: np.random.Generator,
    steps: Sequence[float] = (),
    progress: Callable[[float], None] | None = None,
) -> list[Result]:
    """Watch `runs` rollouts of each candidate for `duration_s`, and read them at every second.

    Args:
        world: The traffic.
        candidates: What is rolled out.
        settings: Alpha, margins, and `min_samples` before a promotion; its steps are not followed.
            Needs the metrics errors, rejections, latency and predictions.
        runs: For each candidate.
        duration_s: Simulated.
        rng: Where chance comes from.
        steps: The candidate's shares, 0 to 1, each held until the verdict promotes it; none for the
            world's weight all the time.
        progress: Told the part that is done, 0 to 1.

    Returns:
        One result for each candidate.
    """
    each = [candidate for candidate in candidates for _ in range(runs)]
    latency = settings.metrics.latency
    quantile = latency.quantile if latency is not None else 0.99
    shares = np.array(steps or (world.weight,))
    last_step = len(shares) - 1
    at_once = max(1, int(_MOST_REQUESTS / world.requests_per_s))
    parts = [each[i : i + at_once] for i in range(0, len(each), at_once)]
    tallies = []
    for i, part in enumerate(parts):
        traffic = Traffic(world=world, candidates=part, rng=rng, quantile=quantile)
        watch, tally = Watch(settings, traffic), _Tally(len(part), settings, last_step)
        for second in range(1, duration_s + 1):
            traffic.weights = shares[tally.step]
            interval = traffic.next()
            watch.add(interval)
            tally.read(second, interval, *watch.verdicts())
            if progress is not None:
                progress((i + second / duration_s) / len(parts))
        tallies.append(tally)
    told = _Told.together(tallies)
    return [
        told.result(candidate.name, slice(i * runs, (i + 1) * runs), world.requests_per_s)
        for i, candidate in enumerate(candidates)
    ]


class _Tally:
    """What was said to each run so far; all fields `[runs]`."""

    def __init__(self, runs: int, settings: CanarySettings, last_step: int) -> None:
        self._settings, self._last_step = settings, last_step
        self._requests, self._errors, self._in_step = np.zeros((3, 2, runs))
        self.step = np.zeros(runs, int)
        self.rolled_back_s, self.promoted_s, self.naive_s = np.full((3, runs), np.inf)
        self.metric = np.zeros(runs, int)
        self.naive_now = np.zeros(runs, bool)

    def read(
        self,
        second: int,
        interval: Interval,
        worse: NDArray[np.bool_],
        tolerated: NDArray[np.bool_],
    ) -> None:
        self._requests += interval.requests
        self._errors += interval.errors
        self._in_step += interval.requests
        back = worse.any(axis=0)
        passed = tolerated.all(axis=0) & (self._in_step.min(axis=0) >= self._settings.min_samples)
        on = passed & (self.step == self._last_step)
        self.step += passed & ~on
        self._in_step[:, passed & ~on] = 0.0
        self.naive_now = z_test_rejects(
            (self._errors[1], self._requests[1]),
            (self._errors[0], self._requests[0]),
            level=self._settings.alpha,
        ) & (self._requests.min(axis=0) >= self._settings.min_samples)
        self.metric = np.where(
            np.isinf(self.rolled_back_s) & back, np.argmax(worse, axis=0), self.metric
        )
        for said, when in (
            (back, self.rolled_back_s),
            (on, self.promoted_s),
            (self.naive_now, self.naive_s),
        ):
            when[said & np.isinf(when)] = second


@dataclass(frozen=True, slots=True)
class _Told:
    """What all tallies say, one after the other; all fields `[runs]`."""

    rolled_back_s: Array
    promoted_s: Array
    naive_s: Array
    naive_now: NDArray[np.bool_]
    metric: NDArray[np.int64]

    @classmethod
    def together(cls, tallies: Sequence[_Tally]) -> "_Told":
        names = (field.name for field in fields(cls))
        return cls(*(np.concatenate([getattr(t, name) for t in tallies]) for name in names))

    def result(self, candidate: str, which: slice, requests_per_s: float) -> Result:
        back_s, on_s = self.rolled_back_s[which], self.promoted_s[which]
        is_back, is_on = back_s < on_s, on_s < back_s
        metric = self.metric[which][is_back]
        return Result(
            candidate=candidate,
            runs=len(back_s),
            requests_per_s=requests_per_s,
            rolled_back_s=_sorted(back_s[is_back]),
            promoted_s=_sorted(on_s[is_on]),
            ever_rolled_back_s=_sorted(back_s[np.isfinite(back_s)]),
            naive_s=_sorted(self.naive_s[which][np.isfinite(self.naive_s[which])]),
            naive_at_the_end=int(self.naive_now[which].sum()),
            by_metric={name: int((metric == i).sum()) for i, name in enumerate(_METRICS)},
        )


def _add(tests: RateDifferences | Turn, shares: Array, yes: Array, total: Array) -> None:
    """Count one second, `[arms, tests]`, of tests that are each at their own share, `[tests]`."""
    for i, share in enumerate(np.unique(shares)):
        here = shares == share
        candidate, baseline = (yes[1] * here, total[1] * here), (yes[0] * here, total[0] * here)
        if isinstance(tests, Turn):
            tests.add(share, candidate, baseline, duration_s=0.0 if i else 1.0)
        else:
            tests.add(share, candidate, baseline)


def _sorted(times: Array) -> tuple[float, ...]:
    return tuple(np.sort(times).tolist())
