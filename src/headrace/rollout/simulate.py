"""Simulation of many rollouts: how often and when each is decided, and the power table.

Many rollouts are simulated together, each read at every second, with the tests of `evidence`: the
same classes, one test for each run where `Evidence` has one. A unit test ensures that both agree.

The two-proportion z test keeps its level when it is read once, at a sample size fixed in advance.
If it is read at every second, each reading is another chance of a false alarm.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core.spec.rollout import CanarySpec, LatencySpec, RolloutSpec, TimePerOutputTokenSpec
from headrace.rollout.bernoulli import log_evidence_each
from headrace.rollout.betting import Array
from headrace.rollout.change_detector import ChangeDetector
from headrace.rollout.evidence import metrics_in_use
from headrace.rollout.judge import MEDIAN_PART, is_worse
from headrace.rollout.latency_ratio import (
    MEDIAN,
    WINDOW_TAILS,
    LatencyMargin,
    cliff_margin,
    cliffs,
    threshold_named,
    threshold_well_below,
    thresholds_near,
    tolerated_evidence,
)
from headrace.rollout.outlook import Expected, expected_requests
from headrace.rollout.prediction_shift import ENOUGH, PredictionShift, by_length, levels, parts
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.readings import When
from headrace.rollout.simulated_traffic import (
    CLASSES,
    SimulatedBaseline,
    SimulatedCandidate,
    SimulatedInterval,
    TrafficDraws,
)

TOKEN_METRICS: Final = ("time_per_output_token", "output_tokens")
_METRICS: Final = ("errors", "rejections", "latency", "predictions", *TOKEN_METRICS)
_MAX_REQUESTS: Final = 400_000
"""Maximum number of requests drawn at once; larger numbers of runs are simulated in several
parts."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of the runs of one candidate.

    Times are simulated seconds, ascending.
    """

    candidate: str
    runs: int
    rolled_back_s: tuple[float, ...]
    """Time when each run was rolled back."""
    promoted_s: tuple[float, ...]
    """Time when each run was promoted."""
    ever_rolled_back_s: tuple[float, ...]
    """Time when a reading first said roll back, also after a promotion."""
    naive_s: tuple[float, ...]
    """Time when a z test of the errors alone, read as often, first rejected equality."""
    naive_at_the_end: int
    """Number of runs in which it rejects equality when read once, at the end."""
    by_metric: dict[str, int]
    """Number of runs that each metric rolled back."""

    @property
    def rolled_back(self) -> float:
        """Return the share of runs that were rolled back."""
        return len(self.rolled_back_s) / self.runs

    @property
    def promoted(self) -> float:
        """Return the share of runs that were promoted."""
        return len(self.promoted_s) / self.runs

    @property
    def undecided(self) -> float:
        """Return the share of runs without a decision."""
        return 1.0 - self.rolled_back - self.promoted

    @property
    def median_s(self) -> float | None:
        """Return the time when half of the runs were decided; None if fewer ever were."""
        ended = sorted([*self.rolled_back_s, *self.promoted_s])
        middle = (self.runs + 1) // 2
        return ended[middle - 1] if len(ended) >= middle else None


class SimulatedTests:
    """The tests of many runs at once."""

    def __init__(self, settings: RolloutSpec, traffic: TrafficDraws) -> None:
        self.settings, self.traffic = settings, traffic
        self._level = settings.alpha / len(metrics_in_use(settings)[0])
        runs, metrics = len(traffic.candidates), settings.metrics
        assert metrics.errors is not None
        assert metrics.rejections is not None
        assert metrics.predictions is not None
        self.step: Array = np.zeros(runs)
        """Rollout step of each run, `[runs]`, which may be changed between seconds."""
        margins = (metrics.errors.margin, metrics.rejections.margin)
        self._errors, self._rejections = (
            RateDifferences.start(runs, watched=margin) for margin in margins
        )
        self._turns = ChangeDetector.start(runs, margins[0]), ChangeDetector.start(runs, margins[1])
        self._quantiles = _watches(traffic, metrics.latency, (traffic.lower_s, traffic.upper_s))
        self._per_token = _watches(traffic, metrics.time_per_output_token, traffic.token_buckets())
        self._lengths = [
            PredictionShift.start() for _ in range(runs if metrics.output_tokens else 0)
        ]
        self._length_verdicts = np.zeros((2, runs), bool)
        """Whether the lengths of each run moved, and whether they are tolerated, `[2, runs]`."""
        self._length_verdicts[1] = not self._lengths
        self._classes = RateDifferences.start(runs * len(CLASSES))
        self._held: Array = np.zeros((2, runs, len(CLASSES)))
        self._held_in = self.step.copy()

    def add(self, interval: SimulatedInterval) -> None:
        """Count one second."""
        shares, requests = self.traffic.weights, interval.requests
        for tests, turn, yes in zip(
            (self._errors, self._rejections),
            self._turns,
            (interval.errors, interval.rejections),
            strict=True,
        ):
            turn.part = tests.parts
            _add(tests, shares, self.step, yes, requests)
            _add(turn, shares, self.step, yes, requests)
        self._add_classes(interval)
        for quantile in self._quantiles:
            quantile.add(interval.cell, interval.bucket, self.step)
        for quantile in self._per_token:
            quantile.add(interval.cell, interval.per_token, self.step)
        if self._lengths:
            self._add_lengths(interval)

    def verdicts(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which metrics say roll back, and which say promote, `[metrics, runs]`."""
        metrics, alpha = self.settings.metrics, self.settings.alpha
        assert metrics.predictions is not None
        level, needed = self._level, -np.log(alpha)
        worse, within = [], []
        for tests, turn in zip((self._errors, self._rejections), self._turns, strict=True):
            assert tests.watched is not None
            worse.append(is_worse(tests.log_evidence_of_harm(), turn.log_evidence(), level))
            evidence = tests.log_evidence(tests.watched, above=False, step=self.step)
            within.append(evidence >= needed)
        slower, tolerated = self._latency_verdict(self._quantiles, level)
        worse.append(slower)
        within.append(tolerated)
        margin, step = metrics.predictions.margin, np.repeat(self.step, len(CLASSES))
        classes, by_class = self._classes, (-1, len(CLASSES))
        increased = classes.log_evidence(margin, above=True)
        decreased = classes.log_evidence(-margin, above=False)
        moved = np.maximum(increased, decreased).reshape(by_class)
        thresholds = -np.log(levels(level, len(CLASSES)) / 2.0)
        worse.append(np.asarray((moved >= thresholds).any(-1)))
        rose_less = classes.log_evidence(margin, above=False, step=step)
        decreased_less = classes.log_evidence(-margin, above=True, step=step)
        tolerated = np.minimum(rose_less, decreased_less).reshape(by_class)
        within.append(np.asarray((tolerated >= needed).all(-1)))
        slower, tolerated = self._latency_verdict(self._per_token, level)
        if self._per_token or self._lengths:
            worse += [slower, self._length_verdicts[0]]
            within += [tolerated, self._length_verdicts[1]]
        return np.stack(worse), np.stack([w & ~b for w, b in zip(within, worse, strict=True)])

    def _latency_verdict(
        self, quantiles: Sequence["_QuantileWatch"], level: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether one is slower, and whether all are tolerated; no and yes without any."""
        parts = (1.0 - MEDIAN_PART, MEDIAN_PART) if len(quantiles) > 1 else (1.0,)
        slower = [q.is_slower(part * level) for part, q in zip(parts, quantiles, strict=False)]
        tolerated = [q.is_tolerated(self.settings.alpha, self.step) for q in quantiles]
        none, every = np.zeros(len(self.step), bool), np.ones(len(self.step), bool)
        return np.any([none, *slower], axis=0), np.all([every, *tolerated], axis=0)

    def _add_lengths(self, interval: SimulatedInterval) -> None:
        runs, output_tokens = len(self._lengths), self.settings.metrics.output_tokens
        assert output_tokens is not None
        order = np.argsort(interval.cell, kind="stable")
        first = np.searchsorted(interval.cell[order], np.arange(2 * runs + 1))
        lengths = interval.lengths[order]
        arms = [by_length(Counter(lengths[a:b].tolist())) for a, b in pairwise(first)]
        for run, shift in enumerate(self._lengths):
            share, step = float(self.traffic.weights[run]), int(self.step[run])
            shift.add(share, arms[run], arms[runs + run], step=step)
            if shift.labels and not any(shift.held):  # just compared
                margin, alpha = output_tokens.margin, self.settings.alpha
                moved, within = shift.refuted(margin, self._level, alpha)
                self._length_verdicts[:, run] = moved.any(), within.all()

    def _add_classes(self, interval: SimulatedInterval) -> None:
        self._held[:, self.step != self._held_in] = 0.0
        self._held_in = self.step.copy()
        self._held += interval.classes
        answers = self._held.sum(-1)
        enough = (answers >= ENOUGH).all(axis=0)
        part = np.stack(parts(self.traffic.weights, *np.maximum(answers, 1.0))) * enough
        by_class = (self._held * part[..., None]).reshape(2, -1)
        total = np.repeat(answers * part, len(CLASSES), axis=-1)
        shares, steps = (np.repeat(a, len(CLASSES)) for a in (self.traffic.weights, self.step))
        _add(self._classes, shares, steps, by_class, total)
        self._held[:, enough] = 0.0


class _QuantileWatch:
    """Latency quantile of many runs, as `LatencyRatios` has it for one."""

    def __init__(
        self,
        quantile: float,
        reach: LatencyMargin,
        traffic: TrafficDraws,
        edges: tuple[Array, Array],
    ) -> None:
        runs, buckets = len(traffic.candidates), len(edges[1])
        centre = round(10 * (1.0 - quantile))
        self._quantile, self._reach, self._traffic = quantile, reach, traffic
        self._lower, self._upper = edges
        self._slower = RateDifferences.start(runs, centre=centre, watched=0.0)
        self._faster = RateDifferences.start(runs, centre=centre)
        self._turn = ChangeDetector.start(runs, 0.0)
        margin = cliff_margin(quantile)
        self._beyond = [RateDifferences.start(runs, centre=centre, watched=margin) for _ in "ab"]
        self._bounded = np.zeros((2, 2, runs))
        self._step = np.zeros(runs)
        self._recent, self._baseline = np.zeros((2, runs, buckets))

    def add(self, cell: NDArray[np.int64], bucket: NDArray[np.int64], step: Array) -> None:
        self._bounded[..., self._step != step] = 0.0
        self._step, shares = step.copy(), self._traffic.weights
        named = threshold_named(self._recent, self._quantile)
        if named.any():
            upper, reaches = self._upper, (LatencyMargin(), self._reach)
            near, near_reach = thresholds_near(
                upper, self._recent, quantile=self._quantile, reaches=reaches
            )
            low = threshold_well_below(self._lower, self._recent, quantile=self._quantile)
            slower, total = self._over(cell, bucket, near, whole=False)
            faster, _ = self._over(cell, bucket, near_reach, whole=True)
            # A bucket's requests are above its lower edge: no bucket is across it.
            bounded, _ = self._over(cell, bucket, low, whole=True)
            total = total * named
            _add(self._slower, shares, step, slower * named, total)
            self._turn.part = self._slower.parts
            _add(self._turn, shares, step, slower * named, total)
            _add(self._faster, shares, step, faster * named, total)
            self._bounded += np.stack([bounded * named, total], axis=1)
            edges, tails = self._cliffs()
            here = named & ~np.isnan(tails)
            for tests, whole in zip(
                self._beyond, (False, True) if here.any() else (), strict=False
            ):
                beyond, of_all = self._over(cell, bucket, edges, whole=whole)
                _add(tests, shares, step, beyond * here, of_all * here)
        self._remember(cell, bucket)

    def is_slower(self, level: float) -> NDArray[np.bool_]:
        worse = is_worse(self._slower.log_evidence_of_harm(), self._turn.log_evidence(), level)
        beyond = self._beyond[0].log_evidence_of_harm() >= -np.log(level)
        return np.where(np.isnan(self._cliffs()[1]), worse, beyond)

    def is_tolerated(self, level: float, step: Array) -> NDArray[np.bool_]:
        tail, needed, part = 1.0 - self._quantile, -np.log(level), self._faster.parts
        (low, of_a), (reach, of_b) = self._bounded
        near = tolerated_evidence(
            self._faster.log_evidence(0.0, above=False, step=step),
            log_evidence_each(low, of_a, tail, above=True, part=part),
            log_evidence_each(reach, of_b, tail, above=False, part=part),
        )
        beyond = self._beyond[1].log_evidence(cliff_margin(self._quantile), above=False, step=step)
        tails = self._cliffs()[1]
        is_beyond: NDArray[np.bool_] = np.isnan(tails) | (beyond >= needed)
        result: NDArray[np.bool_] = is_beyond & ((tails < 1.0) | (near >= needed))
        return result

    def _cliffs(self) -> tuple[Array, Array]:
        edges = (self._lower, self._upper)
        return cliffs(edges, self._baseline, quantile=self._quantile, reach=self._reach)

    def _over(
        self, cell: NDArray[np.int64], bucket: NDArray[np.int64], tau: Array, *, whole: bool
    ) -> tuple[Array, Array]:
        """Return requests above `tau` (for the candidate above its reach) and all requests.

        Both `[arms, runs]`, as `Histogram.above`: a bucket across the candidate's threshold counts
        as above it if `whole`.
        """
        tau_a, tau_b, runs, upper = tau, self._reach(tau), len(tau), self._upper
        # The last bucket that is not above.
        last_a = np.searchsorted(upper, tau_a * (1 - 1e-6))
        last_b = (
            np.searchsorted(upper, tau_b * (1 + 1e-6), side="right") - 1
            if whole
            else np.searchsorted(upper, tau_b * (1 - 1e-6))
        )
        is_over = bucket > np.concatenate([last_a, last_b])[cell]
        over = np.bincount(cell, weights=is_over, minlength=2 * runs)
        total = np.bincount(cell, minlength=2 * runs)
        return over.reshape(2, runs).astype(float), total.reshape(2, runs).astype(float)

    def _remember(self, cell: NDArray[np.int64], bucket: NDArray[np.int64]) -> None:
        runs, buckets = self._recent.shape
        own = cell < runs
        added = np.bincount(cell[own] * buckets + bucket[own], minlength=self._recent.size).reshape(
            self._recent.shape
        )
        fades = self._recent.sum(-1) > WINDOW_TAILS / (1.0 - self._quantile)
        self._recent = self._recent * np.where(fades, 0.5, 1.0)[:, None] + added
        self._baseline = self._baseline + added


def _watches(
    traffic: TrafficDraws,
    metric: LatencySpec | TimePerOutputTokenSpec | None,
    edges: tuple[Array, Array],
) -> list[_QuantileWatch]:
    """Return the watches of a metric: of its quantile, and of the median."""
    if metric is None:
        return []
    margin_s = metric.margin_s if isinstance(metric, LatencySpec) else 0.0
    reach = LatencyMargin(metric.margin_ratio, margin_s)
    quantiles = dict.fromkeys((metric.quantile, MEDIAN))
    return [_QuantileWatch(q, reach, traffic, edges) for q in quantiles]


def simulate(
    world: SimulatedBaseline,
    candidates: Sequence[SimulatedCandidate],
    settings: CanarySpec,
    *,
    runs: int,
    duration_s: int,
    rng: np.random.Generator,
    steps: Sequence[float] = (),
    progress: Callable[[float], None] | None = None,
) -> list[Result]:
    """Simulate `runs` rollouts of each candidate for `duration_s`, read at every second.

    Args:
        world: The traffic.
        candidates: Versions that are rolled out.
        settings: Alpha, margins, and `min_samples` before a promotion; its steps are not followed.
            Needs the metrics errors, rejections, latency and predictions; those of tokens need a
            world of streams.
        runs: Number of rollouts of each candidate.
        duration_s: Simulated.
        rng: Random generator.
        steps: The candidate's shares, 0 to 1, each held until the verdict promotes it; none for the
            world's weight all the time.
        progress: Called with the completed part, 0 to 1.

    Returns:
        One result for each candidate.
    """
    all_candidates = [candidate for candidate in candidates for _ in range(runs)]
    latency = settings.metrics.latency
    quantile = latency.quantile if latency is not None else 0.99
    shares = np.array(steps or (world.weight,))
    last_step = len(shares) - 1
    at_once = max(1, int(_MAX_REQUESTS / world.requests_per_s))
    parts = [all_candidates[i : i + at_once] for i in range(0, len(all_candidates), at_once)]
    tallies = []
    for i, part in enumerate(parts):
        traffic = TrafficDraws(world=world, candidates=part, rng=rng, quantile=quantile)
        watch, tally = SimulatedTests(settings, traffic), _Tally(len(part), settings, last_step)
        for second in range(1, duration_s + 1):
            traffic.weights, watch.step = shares[tally.step], tally.step.astype(float)
            interval = traffic.next()
            watch.add(interval)
            tally.read(second, interval, *watch.verdicts())
            if progress is not None:
                progress((i + second / duration_s) / len(parts))
        tallies.append(tally)
    return [
        _result(tallies, slice(i * runs, (i + 1) * runs), c.name) for i, c in enumerate(candidates)
    ]


class _Tally:
    """Decisions about each run so far; all fields `[runs]`."""

    def __init__(self, runs: int, settings: CanarySpec, last_step: int) -> None:
        self._settings, self._last_step = settings, last_step
        self._requests, self._errors, self._in_step = np.zeros((3, 2, runs))
        self.step = np.zeros(runs, int)
        self.rolled_back_s, self.promoted_s, self.naive_s = np.full((3, runs), np.inf)
        self.metric = np.zeros(runs, int)
        self.naive_now = np.zeros(runs, bool)

    def read(
        self,
        second: int,
        interval: SimulatedInterval,
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
        for is_set, when in (
            (back, self.rolled_back_s),
            (on, self.promoted_s),
            (self.naive_now, self.naive_s),
        ):
            when[is_set & np.isinf(when)] = second


def _result(tallies: Sequence[_Tally], which: slice, candidate: str) -> Result:
    """Return the outcomes of the runs `which`, counted over all tallies."""
    back_s, on_s, naive_s, naive_now, metric = (
        np.concatenate([getattr(tally, name) for tally in tallies])[which]
        for name in ("rolled_back_s", "promoted_s", "naive_s", "naive_now", "metric")
    )
    is_back, is_on = back_s < on_s, on_s < back_s
    return Result(
        candidate=candidate,
        runs=len(back_s),
        rolled_back_s=_sorted(back_s[is_back]),
        promoted_s=_sorted(on_s[is_on]),
        ever_rolled_back_s=_sorted(back_s[np.isfinite(back_s)]),
        naive_s=_sorted(naive_s[np.isfinite(naive_s)]),
        naive_at_the_end=int(naive_now.sum()),
        by_metric={name: int((metric[is_back] == i).sum()) for i, name in enumerate(_METRICS)},
    )


def _add(
    tests: RateDifferences | ChangeDetector, shares: Array, steps: Array, yes: Array, total: Array
) -> None:
    """Count one second, `[arms, tests]`, of tests at their shares and steps, `[tests]`."""
    pairs, which = np.unique(np.stack([shares, steps]), axis=1, return_inverse=True)
    for i, (share, step) in enumerate(pairs.T):
        here = which.ravel() == i
        candidate, baseline = (yes[1] * here, total[1] * here), (yes[0] * here, total[0] * here)
        when = When(step=int(step), duration_s=0.0 if i else 1.0)
        tests.add(float(share), candidate, baseline, when)


def _sorted(times: Array) -> tuple[float, ...]:
    return tuple(np.sort(times).tolist())


def z_test_rejects(
    candidate: tuple[Array, Array], baseline: tuple[Array, Array], *, level: float
) -> NDArray[np.bool_]:
    """Whether two rates differ by a two-sided z test with pooled variance; for comparison only.

    The test keeps its level when it is read once, at a sample size fixed in advance. Read at every
    second it gets a new chance to be wrong each time.

    Args:
        candidate: Yes and all of the candidate so far, `[runs]`.
        baseline: Yes and all of the baseline so far, `[runs]`.
        level: Level of one reading.
    """
    (yes_b, all_b), (yes_a, all_a) = candidate, baseline
    both = (all_a > 0) & (all_b > 0)
    n_a, n_b = np.maximum(all_a, 1.0), np.maximum(all_b, 1.0)
    pooled = (yes_a + yes_b) / (n_a + n_b)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    z = np.abs(yes_b / n_b - yes_a / n_a)
    result: NDArray[np.bool_] = both & (z > NormalDist().inv_cdf(1 - level / 2) * spread)
    return result


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Change of one metric: the expected and the simulated requests."""

    expected: Expected
    expected_s: float | None
    result: Result


def changes(world: SimulatedBaseline) -> list[tuple[str, SimulatedCandidate]]:
    """Return the changes in the power table: metric and candidate."""
    table = [("errors", SimulatedCandidate(name="no change"))]
    for more in (0.01, 0.05, 0.2):
        name = f"errors {100 * more:.0f} % higher (relative)"
        table.append(("errors", SimulatedCandidate(name=name, more_errors=more * world.errors)))
    for more, points in ((0.01, "1 point"), (0.05, "5 points"), (0.2, "20 points")):
        name = f"errors {points} higher"
        table.append(("errors", SimulatedCandidate(name=name, more_errors=more)))
    for times in (1.1, 1.5, 2.0, 3.0):
        name = f"p99 times {times:g}"
        table.append(("latency", SimulatedCandidate(name=name, times_slower=times)))
    return table


def power_table(
    world: SimulatedBaseline, settings: CanarySpec, results: Sequence[Result]
) -> list[Power]:
    """Return the rows of the table, for the results of `changes` in their order."""
    rows = []
    for (metric, candidate), result in zip(changes(world), results, strict=True):
        expected = expected_requests(world, candidate, settings, metric=metric)
        needed = [n for n in (expected.until_worse, expected.until_tolerated) if n is not None]
        expected_s = min(needed) / world.requests_per_s if needed else None
        rows.append(Power(expected=expected, expected_s=expected_s, result=result))
    return rows
