"""Expected number of requests until a decision, from the growth of the best bet.

A gambler's capital grows by its expected logarithm with each request, so a test with evidence
needed `log(1 / level)` takes about that, plus what the mixture costs, divided by the growth. An
estimate for planning, for a base rate that stands still; `simulate` is the judge. What is forgiven
(`forgiving`) comes on top: a few seconds, or a few failures where not every second has one.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np

from headrace.core.spec_rollout import CanarySpec
from headrace.rollout.betting import WEIGHTS, log_growth
from headrace.rollout.evidence import metrics_in_use
from headrace.rollout.forgiving import FORGIVEN
from headrace.rollout.judge import MEDIAN_PART, worse_level
from headrace.rollout.latency_ratio import MEDIAN, Reach
from headrace.rollout.rate_difference import Stratum
from headrace.rollout.simulate import Result
from headrace.rollout.world import LATENCY_SPREAD, Candidate, World


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Requests to both versions until the metric is shown worse, and until within its margin.

    None where that never comes.
    """

    metric: str
    until_worse: float | None
    until_tolerated: float | None


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """A change of one metric: what is expected, and what the simulation found."""

    change: str
    expected: Expected
    expected_s: float | None
    result: Result


def expected_requests(
    world: World, candidate: Candidate, settings: CanarySpec, *, metric: str
) -> Expected:
    """Requests that the metric (`errors` or `latency`) takes; see `Expected`."""
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
            reach = Reach(latency.margin_ratio, latency.margin_s).factor(quantile_s)
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


def changes(world: World) -> list[tuple[str, str, Candidate]]:
    """Which changes the power table shows: metric, what people call it, the candidate."""
    found = [("errors", "no change", Candidate(name="no change"))]
    for more in (0.01, 0.05, 0.2):
        name = f"errors {100 * more:.0f} % higher (relative)"
        found.append(("errors", name, Candidate(name=name, more_errors=more * world.errors)))
    for more, name in ((0.01, "1 point"), (0.05, "5 points"), (0.2, "20 points")):
        change = f"errors {name} higher"
        found.append(("errors", change, Candidate(name=change, more_errors=more)))
    for times in (1.1, 1.5, 2.0, 3.0):
        name = f"p99 times {times:g}"
        found.append(("latency", name, Candidate(name=name, times_slower=times)))
    return found


def power_table(world: World, settings: CanarySpec, results: Sequence[Result]) -> list[Power]:
    """The rows of the table, for the results of `changes` in their order."""
    rows = []
    for (metric, name, candidate), result in zip(changes(world), results, strict=True):
        expected = expected_requests(world, candidate, settings, metric=metric)
        needed = [n for n in (expected.until_worse, expected.until_tolerated) if n is not None]
        expected_s = min(needed) / world.requests_per_s if needed else None
        rows.append(Power(change=name, expected=expected, expected_s=expected_s, result=result))
    return rows


def _exceeds(quantile: float, factor: float) -> float:
    """The share that takes longer than `factor` times the quantile, of log-normal latencies."""
    normal = NormalDist()
    return 1.0 - normal.cdf(normal.inv_cdf(quantile) + math.log(factor) / LATENCY_SPREAD)


def _requests(
    world: World, rates: tuple[float, float], mean: float, level: float, *, above: bool
) -> float | None:
    share, (rate_a, rate_b) = world.weight, rates
    centre = round(10 * (share * rate_b + (1 - share) * rate_a))
    stratum = Stratum(share, centre, np.zeros((1, 4)))
    chance = np.array(
        [share * rate_b, share * (1 - rate_b), (1 - share) * rate_a, (1 - share) * (1 - rate_a)]
    )
    each = log_growth(stratum.values(), stratum.scale, mean, above=above)
    growth = chance @ each
    if growth.max() <= 0.0:
        return None
    paying = growth > 0.0
    needed = -math.log(level) - np.log(WEIGHTS[paying])
    if above:
        needed += FORGIVEN * np.maximum(each.max(axis=0), world.requests_per_s * growth)[paying]
    return float(np.min(needed / growth[paying]))
