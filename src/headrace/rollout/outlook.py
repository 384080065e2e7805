"""Expected time until a rollout is decided, at the request rate of its endpoint.

Each step that waits for a verdict needs the evidence of its own requests, so the times of all steps
add up. Rewards and shadows are not estimated. The estimate is shown to users and decides about a
rollout whose time is over: a version is not at fault for insufficient traffic.

A gambler's capital grows by its expected logarithm with each request, so a test with required
evidence `log(1 / level)` takes about that, plus the cost of the mixture, divided by the growth, for
a constant base rate. Left-out intervals (`forgiving`) add to it: a few seconds, or a few failures
if not every second has one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import replace as with_changes
from statistics import NormalDist
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace

from headrace.core.spec.rollout import (
    AbSpec,
    CanarySpec,
    ErrorsSpec,
    LatencySpec,
    MetricsSpec,
    RolloutSpec,
)
from headrace.core.text import duration_text
from headrace.rollout.bernoulli import FORGIVEN
from headrace.rollout.betting import WEIGHTS, log_growth
from headrace.rollout.evidence import metrics_in_use
from headrace.rollout.judge import MEDIAN_PART, worse_level
from headrace.rollout.latency_ratio import MEDIAN, LatencyMargin
from headrace.rollout.rate_difference import Stratum
from headrace.rollout.simulated_traffic import LATENCY_SPREAD, SimulatedBaseline, SimulatedCandidate
from headrace.rollout.stages import Stage, plan_of
from headrace.rollout.state import RolloutState, TrafficShares

_TIMES_MARGIN: Final = 2.0
_ANSWERS_RATIO: Final = 0.5
"""Assumed share of the responses of the class with the largest variance."""
_FEW_PER_S: Final = 10.0
USUAL_MEDIAN_S: Final = SimulatedBaseline().median_s
"""Assumed median latency if none was measured: a margin in seconds is a factor of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLoad:
    """The load of an endpoint, and its version's current results."""

    requests_per_s: float
    error_ratio: float = 0.0
    rejection_ratio: float = 0.0
    median_s: float = USUAL_MEDIAN_S
    independent_ratio: float = 1.0
    """Observations per request; below 1 with sticky callers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Expected times of a rollout. Infinite for never."""

    requests_per_s: float
    good_s: float
    """Seconds until a version as good as the old one passes all steps."""

    worse_s: float
    """Seconds until a version worse by twice the margin is rolled back."""
    max_duration_s: float

    @property
    def suffices(self) -> bool:
        """Whether a version as good as the old one is expected to be promoted in time."""
        return self.good_s <= self.max_duration_s

    @property
    def text(self) -> str:
        """Return the outlook as one line."""
        limit = f"max_duration_s is {duration_text(self.max_duration_s)}"
        if not self.suffices:
            limit += ": raise it, the new version's share or the margins"
        if self.requests_per_s <= 0.0:
            return f"no requests come, and without them there is no verdict; {limit}"
        digits = 1 if self.requests_per_s < _FEW_PER_S else 0
        valid, worse = (
            "never" if math.isinf(seconds) else f"after about {duration_text(seconds)}"
            for seconds in (self.good_s, self.worse_s)
        )
        return (
            f"at {self.requests_per_s:,.{digits}f} requests/s a version as good as the old one has "
            f"its verdict {valid}, one worse by twice the margin {worse}; {limit}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    """Test of a metric as `expected_requests` reads it, with its base rate and its limit."""

    metric: str
    world: SimulatedBaseline
    worse: SimulatedCandidate
    settings: CanarySpec


def outlook(settings: RolloutSpec, load: EndpointLoad) -> Outlook | None:
    """Return the expected times of a rollout; None if they cannot be estimated."""
    stages = plan_of(settings).stages
    first = next((stage for stage in stages if stage.until == "verdict"), None)
    tests = list(_tests(settings, load))
    if not isinstance(settings, CanarySpec | AbSpec) or first is None or not tests:
        return None
    return Outlook(
        requests_per_s=load.requests_per_s,
        good_s=sum(_stage_s(settings, stage, tests, load) for stage in stages),
        worse_s=max(_verdict_s(first, test, load, is_worse=True) for test in tests),
        max_duration_s=settings.max_duration_s,
    )


def observed_load(state: RolloutState, counted: Mapping[str, float]) -> EndpointLoad | None:
    """Return the load under which a rollout's evidence was counted; None before any counts.

    Args:
        counted: Counts of `Evidence.summary`.
    """
    requests = counted["baseline_requests"] + counted["candidate_requests"]
    compared = _compared(state.traffic)
    if not counted["counted_s"] or not compared:
        return None
    metrics = state.verdict.metrics if state.verdict else ()
    old = {metric.metric: metric.baseline or 0.0 for metric in metrics}
    latency = state.settings.metrics.latency or LatencySpec()
    times_median = math.exp(LATENCY_SPREAD * NormalDist().inv_cdf(latency.quantile))
    return EndpointLoad(
        requests_per_s=100 * requests / compared / counted["counted_s"],
        error_ratio=old.get("errors", 0.0),
        rejection_ratio=old.get("rejections", 0.0),
        median_s=old.get("latency", 0.0) / times_median or USUAL_MEDIAN_S,
        independent_ratio=min(counted["independent_requests"] / requests, 1.0) if requests else 1.0,
    )


def _tests(settings: RolloutSpec, load: EndpointLoad) -> Iterator[_Test]:
    metrics, plan = settings.metrics, CanarySpec(alpha=settings.alpha)
    for ratio, metric in (
        (load.error_ratio, metrics.errors),
        (load.rejection_ratio, metrics.rejections),
        (_ANSWERS_RATIO, metrics.predictions),
    ):
        if metric is not None:
            errors = ErrorsSpec(margin=metric.margin)
            yield _Test(
                metric="errors",
                world=SimulatedBaseline(errors=ratio),
                worse=SimulatedCandidate(more_errors=_TIMES_MARGIN * metric.margin),
                settings=replace(plan, metrics=MetricsSpec(errors=errors)),
            )
    if metrics.latency is not None:
        slower = 1.0 + _TIMES_MARGIN * (metrics.latency.margin_ratio - 1.0)
        yield _Test(
            metric="latency",
            world=SimulatedBaseline(median_s=load.median_s),
            worse=SimulatedCandidate(times_slower=slower),
            settings=replace(plan, metrics=metrics),
        )


def _stage_s(settings: RolloutSpec, stage: Stage, tests: list[_Test], load: EndpointLoad) -> float:
    """Return how long a stage is held for a version that is as good as the old one."""
    if stage.until != "verdict":
        return stage.pause_s
    traffic = stage.traffic
    smaller = min(traffic.candidate, _compared(traffic) - traffic.candidate) or traffic.candidate
    smaller_per_s = load.requests_per_s * smaller / 100
    samples_s = settings.min_samples / smaller_per_s if smaller_per_s else math.inf
    verdicts_s = [_verdict_s(stage, test, load) for test in tests]
    return max(stage.pause_s, settings.warmup_s + max(samples_s, *verdicts_s))


def _verdict_s(stage: Stage, test: _Test, load: EndpointLoad, *, is_worse: bool = False) -> float:
    """Return the time until one metric is within its margin, or is shown to be worse."""
    compared = _compared(stage.traffic)
    per_s = load.requests_per_s * load.independent_ratio * compared / 100
    share = stage.traffic.candidate / compared
    if per_s <= 0.0 or share in {0.0, 1.0}:  # no requests, or no second arm to compare with
        return math.inf
    world = with_changes(test.world, requests_per_s=per_s, weight=share)
    candidate = test.worse if is_worse else SimulatedCandidate()
    expected = expected_requests(world, candidate, test.settings, metric=test.metric)
    requests = expected.until_worse if is_worse else expected.until_tolerated
    return math.inf if requests is None else requests / per_s


def _compared(traffic: TrafficShares) -> int:
    """Return the percentage of the requests that go to one of the two compared arms."""
    return traffic.candidate + (traffic.baseline if traffic.has_baseline else traffic.stable)


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Requests to both versions until the metric is shown worse, and until within its margin.

    None for never.
    """

    metric: str
    until_worse: float | None
    until_tolerated: float | None


def expected_requests(
    world: SimulatedBaseline, candidate: SimulatedCandidate, settings: CanarySpec, *, metric: str
) -> Expected:
    """Return the requests that the metric (`errors` or `latency`) takes; see `Expected`."""
    level = settings.alpha / len(metrics_in_use(settings)[0])
    if metric == "errors":
        errors = settings.metrics.errors
        assert errors is not None
        rates = (world.errors, min(world.errors + candidate.more_errors, 1.0))
        tests = [(rates, errors.margin, level)]
    else:
        latency = settings.metrics.latency
        assert latency is not None
        tests = []
        for quantile, part in ((latency.quantile, 1.0 - MEDIAN_PART), (MEDIAN, MEDIAN_PART)):
            quantile_s = world.median_s * math.exp(LATENCY_SPREAD * NormalDist().inv_cdf(quantile))
            reach = LatencyMargin(latency.margin_ratio, latency.margin_s).factor(quantile_s)
            beyond = _exceeds(quantile, reach / candidate.times_slower)
            tests.append(((1.0 - quantile, beyond), 0.0, part * level))
    worse = [
        _requests(world, rates, mean, worse_level(level, has_threshold=False), above=True)
        for rates, mean, level in tests
    ]
    tolerated = [
        _requests(world, rates, mean, settings.alpha, above=False) for rates, mean, _ in tests
    ]
    return Expected(
        metric=metric,
        until_worse=min((n for n in worse if n is not None), default=None),
        until_tolerated=None if None in tolerated else max(n for n in tolerated if n is not None),
    )


def _exceeds(quantile: float, factor: float) -> float:
    """Return the share that exceeds `factor` times the quantile, of log-normal latencies."""
    normal = NormalDist()
    return 1.0 - normal.cdf(normal.inv_cdf(quantile) + math.log(factor) / LATENCY_SPREAD)


def _requests(
    world: SimulatedBaseline, rates: tuple[float, float], mean: float, level: float, *, above: bool
) -> float | None:
    share, (rate_a, rate_b) = world.weight, rates
    centre = round(10 * (share * rate_b + (1 - share) * rate_a))
    stratum = Stratum(share, centre, np.zeros((1, 4)))
    chance = np.array(
        [share * rate_b, share * (1 - rate_b), (1 - share) * rate_a, (1 - share) * (1 - rate_a)]
    )
    growth_by_cell = log_growth(stratum.values(), stratum.scale, mean, above=above)
    growth = chance @ growth_by_cell
    if growth.max() <= 0.0:
        return None
    paying = growth > 0.0
    needed = -math.log(level) - np.log(WEIGHTS[paying])
    if above:
        needed += (
            FORGIVEN * np.maximum(growth_by_cell.max(axis=0), world.requests_per_s * growth)[paying]
        )
    return float(np.min(needed / growth[paying]))
