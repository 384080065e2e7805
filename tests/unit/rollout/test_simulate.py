import math
from collections import Counter

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.core.spec.rollout import (
    CanarySpec,
    LatencySpec,
    MetricsSpec,
    OutputTokensSpec,
    TimePerOutputTokenSpec,
)
from headrace.rollout.betting import Array
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.outcomes import Outcome
from headrace.rollout.outlook import expected_requests
from headrace.rollout.readings import ArmCounts, Buckets, Increment
from headrace.rollout.simulate import (
    TOKEN_METRICS,
    Result,
    SimulatedTests,
    changes,
    power_table,
    simulate,
    z_test_rejects,
)
from headrace.rollout.simulated_traffic import (
    CLASSES,
    SimulatedBaseline,
    SimulatedCandidate,
    SimulatedInterval,
    TrafficDraws,
)
from tests.unit.rollout.readings import in_buckets

READ_AT_ONCE = CanarySpec(min_samples=1)
TOKENS = SimulatedBaseline(requests_per_s=20.0, weight=0.5, median_s=0.2, streams=True)
TOKEN_SETTINGS = CanarySpec(
    min_samples=1,
    metrics=MetricsSpec(
        latency=LatencySpec(quantile=0.5, margin_ratio=1.1),
        time_per_output_token=TimePerOutputTokenSpec(),
        output_tokens=OutputTokensSpec(),
    ),
)


def one(
    candidate: SimulatedCandidate,
    *,
    runs: int,
    duration_s: int,
    world: SimulatedBaseline | None = None,
    settings: CanarySpec = READ_AT_ONCE,
) -> Result:
    (result,) = simulate(
        world or SimulatedBaseline(),
        [candidate],
        settings,
        runs=runs,
        duration_s=duration_s,
        rng=np.random.default_rng(20),
    )
    return result


def at_most(level: float, runs: int) -> float:
    """What a ratio of `runs` exceeds with probability 0.1 % if it is `level`."""
    return level + 3.1 * math.sqrt(level * (1 - level) / runs)


def latencies(edges: tuple[Array, Array], buckets: NDArray[np.int64]) -> Buckets:
    (lower, upper), (found, counts) = edges, np.unique(buckets, return_counts=True)
    return in_buckets(
        lower_s=tuple(lower[found].tolist()),
        width_s=tuple((upper - lower)[found].tolist()),
        counts=tuple(counts.tolist()),
    )


def increment(traffic: TrafficDraws, interval: SimulatedInterval, run: int, at: float) -> Increment:
    """What the gateway and the replicas would have told about one run's second."""
    runs, arms = len(traffic.candidates), []
    for arm in range(2):
        own = interval.cell == arm * runs + run
        is_stream = traffic.world.streams
        lengths = Counter(interval.lengths[own].tolist()) if is_stream else {}
        per_token = interval.per_token[own] if is_stream else np.zeros(0, int)
        arms.append(
            ArmCounts(
                requests=int(interval.requests[arm, run]),
                errors=int(interval.errors[arm, run]),
                rejections=int(interval.rejections[arm, run]),
                latency=latencies((traffic.lower_s, traffic.upper_s), interval.bucket[own]),
                per_token=latencies(traffic.token_buckets(), per_token),
                output_tokens=lengths,
                classes={
                    name: int(n)
                    for name, n in zip(CLASSES, interval.classes[arm, run], strict=True)
                },
            )
        )
    return Increment(
        at=at,
        duration_s=1.0,
        share=traffic.world.weight,
        baseline=arms[0],
        candidate=arms[1],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "candidate",
    [
        SimulatedCandidate(),
        SimulatedCandidate(more_errors=0.03),
        SimulatedCandidate(times_slower=1.8),
        SimulatedCandidate(moved_answers=0.25),
    ],
)
def test_the_simulation_decides_as_evidence_does(candidate: SimulatedCandidate) -> None:
    world = SimulatedBaseline(requests_per_s=200.0, weight=0.4, errors=0.002, moves=False)
    settings = CanarySpec()
    traffic = TrafficDraws(world=world, candidates=[candidate] * 2, rng=np.random.default_rng(8))
    watch = SimulatedTests(settings, traffic)
    evidence = [RolloutEvidenceState.start(settings) for _ in range(2)]
    said: set[Outcome] = set()

    for at in range(35):
        interval = traffic.next()
        watch.add(interval)
        worse, tolerated = watch.verdicts()
        for run in range(2):
            evidence[run].add(increment(traffic, interval, run, at))
            verdict = evidence[run].verdict(at)
            said.add(verdict.outcome)

            outcomes = [metric.outcome for metric in verdict.metrics]
            assert [o is Outcome.ROLL_BACK for o in outcomes] == worse[:, run].tolist()
            assert [o is Outcome.PROMOTE for o in outcomes] == tolerated[:, run].tolist()
    assert len(said) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "candidate",
    [
        SimulatedCandidate(),
        SimulatedCandidate(times_slower_per_token=1.3),
        SimulatedCandidate(times_longer=2.0),
    ],
)
def test_the_simulation_decides_about_tokens_as_evidence_does(
    candidate: SimulatedCandidate,
) -> None:
    traffic = TrafficDraws(world=TOKENS, candidates=[candidate] * 2, rng=np.random.default_rng(8))
    watch = SimulatedTests(TOKEN_SETTINGS, traffic)
    evidence = [RolloutEvidenceState.start(TOKEN_SETTINGS) for _ in range(2)]
    said: set[Outcome] = set()

    for at in range(100):
        interval = traffic.next()
        watch.add(interval)
        worse, tolerated = watch.verdicts()
        for run in range(2):
            evidence[run].add(increment(traffic, interval, run, at))
            metrics = evidence[run].verdict(at).metrics
            outcomes = {metric.metric: metric.outcome for metric in metrics}
            for row, metric in enumerate(outcomes):
                assert (outcomes[metric] is Outcome.ROLL_BACK) == worse[row, run]
                assert (outcomes[metric] is Outcome.PROMOTE) == tolerated[row, run]
            said |= {outcomes.get(metric, Outcome.WAIT) for metric in TOKEN_METRICS}
    expected = {Outcome.WAIT, Outcome.PROMOTE}
    if candidate != SimulatedCandidate():
        expected.add(Outcome.ROLL_BACK)
    assert said == expected


def token_laws(equal: int, worse: int, duration_s: int) -> None:
    """A language model with 20 requests per second at 50 %: runs of equal and of worse versions."""
    same = one(
        SimulatedCandidate(),
        runs=equal,
        duration_s=duration_s,
        world=TOKENS,
        settings=TOKEN_SETTINGS,
    )
    assert len(same.ever_rolled_back_s) / equal <= 0.05

    for candidate, metric in (
        (SimulatedCandidate(times_slower_per_token=1.3), "time_per_output_token"),
        (SimulatedCandidate(times_slower=1.3), "latency"),
        (SimulatedCandidate(times_longer=2.0), "output_tokens"),
        (SimulatedCandidate(times_longer=0.5), "output_tokens"),
    ):
        result = one(
            candidate, runs=worse, duration_s=duration_s, world=TOKENS, settings=TOKEN_SETTINGS
        )
        assert result.rolled_back >= 0.95
        assert result.by_metric[metric] >= 0.95 * worse


@pytest.mark.slow
def test_a_version_with_slow_tokens_or_another_length_is_rolled_back_and_an_equal_one_is_not() -> (
    None
):
    token_laws(20, 8, 240)


@pytest.mark.long
@pytest.mark.slow
def test_of_a_thousand_equal_language_models_few_are_rolled_back() -> None:
    token_laws(1000, 100, 300)


@pytest.mark.slow
def test_a_good_version_is_rolled_back_at_most_as_often_as_alpha_says() -> None:
    result = one(
        SimulatedCandidate(), runs=300, duration_s=150, world=SimulatedBaseline(weight=0.3)
    )

    assert len(result.ever_rolled_back_s) / 300 <= at_most(0.05, 300)
    # The same world fools the textbook test read as often, but not the one read once.
    assert len(result.naive_s) / 300 > 0.2
    assert result.naive_at_the_end / 300 <= at_most(0.05, 300)


@pytest.mark.long
@pytest.mark.slow
def test_stalls_of_either_version_roll_back_no_more_often() -> None:
    # Whoever takes the requests of a stall for independent rolls a fifth of these back.
    world = SimulatedBaseline(weight=0.3, requests_per_s=100.0, bursts=True)

    result = one(SimulatedCandidate(), runs=200, duration_s=450, world=world)

    assert len(result.ever_rolled_back_s) / 200 <= at_most(0.05, 200)


@pytest.mark.slow
def test_no_part_of_the_verdict_alone_is_false_more_often_than_it_may() -> None:
    # All of alpha on each metric, where the four share it otherwise.
    settings = CanarySpec(min_samples=1, alpha=0.2)

    result = one(
        SimulatedCandidate(),
        runs=300,
        duration_s=150,
        settings=settings,
        world=SimulatedBaseline(weight=0.5, requests_per_s=30.0),
    )

    for rolled_back in result.by_metric.values():
        assert rolled_back / 300 <= at_most(0.05, 300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "metric"),
    [
        (SimulatedCandidate(more_errors=0.05), "errors"),
        (SimulatedCandidate(times_slower=3.0), "latency"),
        (SimulatedCandidate(moved_answers=0.25), "predictions"),
    ],
)
def test_a_bad_version_is_rolled_back_for_its_own_fault(
    candidate: SimulatedCandidate, metric: str
) -> None:
    result = one(candidate, runs=60, duration_s=120, world=SimulatedBaseline(weight=0.2))

    assert result.rolled_back > 0.95
    assert result.by_metric[metric] > 0.9 * 60
    assert result.median_s is not None
    assert result.median_s < 60.0


@pytest.mark.long
@pytest.mark.slow
def test_a_version_at_the_edge_of_what_is_tolerated_is_seldom_decided() -> None:
    world = SimulatedBaseline(weight=0.5, errors=0.002, moves=False, requests_per_s=100.0)

    result = one(SimulatedCandidate(more_errors=0.005), runs=200, duration_s=200, world=world)

    assert result.promoted <= at_most(0.05, 200)
    assert result.rolled_back <= at_most(0.05, 200)


@pytest.mark.slow
def test_a_good_version_is_promoted_in_time() -> None:
    world = SimulatedBaseline(weight=0.5, errors=0.001, moves=False)

    result = one(SimulatedCandidate(), runs=40, duration_s=400, world=world)

    assert result.promoted > 0.9
    assert result.undecided + result.promoted + result.rolled_back == pytest.approx(1.0)


def test_few_samples_promote_nothing_but_roll_back() -> None:
    settings = CanarySpec(min_samples=100_000)
    world = SimulatedBaseline(requests_per_s=1000.0, weight=0.5, errors=0.0001, moves=False)

    good = one(SimulatedCandidate(), runs=3, duration_s=30, world=world, settings=settings)
    bad = one(
        SimulatedCandidate(more_errors=0.5), runs=3, duration_s=30, world=world, settings=settings
    )

    assert good.undecided == 1.0
    assert good.median_s is None
    assert bad.rolled_back == 1.0


@pytest.mark.slow
def test_a_canary_goes_on_step_by_step() -> None:
    world = SimulatedBaseline(requests_per_s=200.0, errors=0.001, moves=False)

    (stepped,), (at_once,) = (
        simulate(
            world,
            [SimulatedCandidate()],
            CanarySpec(),
            runs=12,
            duration_s=200,
            rng=np.random.default_rng(4),
            steps=steps,
        )
        for steps in ((0.2, 0.5), (0.5,))
    )

    assert stepped.promoted > 0.9
    assert stepped.median_s is not None
    assert at_once.median_s is not None
    assert stepped.median_s > at_once.median_s


@pytest.mark.long
@pytest.mark.slow
def test_a_ramp_rolls_back_a_good_version_no_more_often() -> None:
    traffic = TrafficDraws(
        world=SimulatedBaseline(),
        candidates=[SimulatedCandidate()] * 300,
        rng=np.random.default_rng(3),
    )
    watch, ever = SimulatedTests(CanarySpec(), traffic), np.zeros(300, bool)

    for second in range(120):
        traffic.weights = np.where(np.arange(300) % 2, 0.5, (0.05, 0.25, 0.5)[second // 40])
        watch.add(traffic.next())
        ever |= watch.verdicts()[0].any(axis=0)

    assert ever.mean() <= at_most(0.05, 300)


def test_other_quantiles_are_simulated_too() -> None:
    metrics = MetricsSpec(latency=LatencySpec(quantile=0.5))

    result = one(
        SimulatedCandidate(times_slower=2.0),
        runs=5,
        duration_s=40,
        world=SimulatedBaseline(weight=0.5),
        settings=CanarySpec(metrics=metrics),
    )

    assert result.by_metric["latency"] == 5


def test_the_same_seed_gives_the_same_and_progress_is_told() -> None:
    told: list[float] = []

    first, second = (
        simulate(
            SimulatedBaseline(),
            [SimulatedCandidate(), SimulatedCandidate(name="worse", more_errors=0.2)],
            READ_AT_ONCE,
            runs=3,
            duration_s=10,
            rng=np.random.default_rng(1),
            progress=told.append,
        )
        for _ in range(2)
    )

    assert first == second
    assert [result.candidate for result in first] == ["the same", "worse"]
    assert told[:10] == pytest.approx([i / 10 for i in range(1, 11)])


def test_many_requests_are_simulated_part_by_part() -> None:
    told: list[float] = []

    (result,) = simulate(
        SimulatedBaseline(requests_per_s=200_000.0),
        [SimulatedCandidate(more_errors=0.2)],
        READ_AT_ONCE,
        runs=3,
        duration_s=5,
        rng=np.random.default_rng(1),
        progress=told.append,
    )

    assert result.rolled_back == 1.0
    assert result.runs == 3
    assert told == pytest.approx([0.1 * i for i in range(1, 11)])


def test_the_world_is_as_it_was_asked_for() -> None:
    world = SimulatedBaseline(requests_per_s=100.0, weight=0.3, errors=0.02, moves=False)
    candidate = SimulatedCandidate(more_errors=0.1, moved_answers=0.2, times_slower=2.0)
    traffic = TrafficDraws(world=world, candidates=[candidate] * 200, rng=np.random.default_rng(3))

    seconds = [traffic.next() for _ in range(20)]

    requests = sum(s.requests.sum(axis=1) for s in seconds)
    errors = sum(s.errors.sum(axis=1) for s in seconds)
    classes = sum(s.classes.sum(axis=1) for s in seconds)
    assert requests[1] / requests.sum() == pytest.approx(0.3, abs=0.005)
    assert errors / requests == pytest.approx([0.02, 0.12], abs=0.005)
    assert classes[0] / classes[0].sum() == pytest.approx([0.6, 0.3, 0.1], abs=0.005)
    assert classes[1] / classes[1].sum() == pytest.approx([0.4, 0.5, 0.1], abs=0.005)
    # The median, times the factor, is the p50; p99 is 3.2 of the old version's medians.
    p99_bucket = np.searchsorted(traffic.upper_s, 0.02 * math.exp(0.5 * 2.326))
    late = sum(
        np.bincount(s.cell // 200, weights=s.bucket > p99_bucket, minlength=2) for s in seconds
    )
    assert late / requests == pytest.approx([0.01, 0.17], abs=0.02)


def test_a_moving_world_moves() -> None:
    traffic = TrafficDraws(
        world=SimulatedBaseline(requests_per_s=1000.0, period_s=40.0),
        candidates=[SimulatedCandidate()],
        rng=np.random.default_rng(3),
    )

    totals = [float(traffic.next().requests.sum()) for _ in range(40)]

    assert min(totals) < 650
    assert max(totals) > 1350


def test_the_textbook_test_rejects_what_is_different() -> None:
    yes, all_ = np.array([10.0, 50.0, 0.0]), np.array([1000.0, 1000.0, 0.0])

    rejected = z_test_rejects((yes, all_), (np.full(3, 10.0), np.full(3, 1000.0)), level=0.05)

    assert rejected.tolist() == [False, True, False]


@pytest.mark.slow
def test_the_expected_duration_is_about_the_simulated_one() -> None:
    world = SimulatedBaseline(weight=0.5, moves=False)
    candidates = [SimulatedCandidate(more_errors=0.03), SimulatedCandidate(times_slower=1.7)]

    results = simulate(
        world,
        candidates,
        READ_AT_ONCE,
        runs=60,
        duration_s=200,
        rng=np.random.default_rng(2),
    )

    for metric, candidate, result in zip(("errors", "latency"), candidates, results, strict=True):
        expected = expected_requests(world, candidate, READ_AT_ONCE, metric=metric)
        assert expected.until_worse is not None
        assert result.median_s is not None
        assert 0.5 < expected.until_worse / world.requests_per_s / result.median_s < 1.7


def test_what_is_not_so_is_never_shown() -> None:
    world = SimulatedBaseline(moves=False)

    same = expected_requests(world, SimulatedCandidate(), READ_AT_ONCE, metric="errors")
    worse = expected_requests(
        world, SimulatedCandidate(more_errors=0.05), READ_AT_ONCE, metric="errors"
    )
    slow = expected_requests(
        world, SimulatedCandidate(times_slower=2.0), READ_AT_ONCE, metric="latency"
    )

    assert same.until_worse is None
    assert same.until_tolerated is not None
    assert worse.until_tolerated is None
    assert slow.until_tolerated is None
    assert slow.until_worse is not None


def test_larger_effects_take_fewer_requests() -> None:
    world = SimulatedBaseline(moves=False)

    needed = [
        expected_requests(
            world, SimulatedCandidate(more_errors=more), READ_AT_ONCE, metric="errors"
        )
        for more in (0.01, 0.05, 0.2)
    ]

    assert [n.until_worse for n in needed] == sorted(
        (n.until_worse or 0.0 for n in needed), reverse=True
    )


def test_the_power_table_has_a_row_for_each_change() -> None:
    world = SimulatedBaseline(weight=0.5, moves=False)
    candidates = [candidate for _, candidate in changes(world)]
    results = simulate(
        world, candidates, CanarySpec(), runs=2, duration_s=5, rng=np.random.default_rng(1)
    )

    rows = power_table(world, CanarySpec(), results)

    assert [row.result.candidate for row in rows] == [candidate.name for candidate in candidates]
    assert {row.expected.metric for row in rows} == {"errors", "latency"}
    assert all(row.expected_s is not None for row in rows)
    assert msgspec.to_builtins(rows[0])["result"]["runs"] == 2
