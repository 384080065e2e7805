import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import FailedPreconditionError
from headrace.core.spec.rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    DisagreementSpec,
    ErrorsSpec,
    LatencySpec,
    MetricsSpec,
    OutputTokensSpec,
    PredictionsSpec,
    RejectionsSpec,
    RewardSpec,
    RolloutSpec,
    ShadowSpec,
    TimePerOutputTokenSpec,
)
from headrace.rollout.evidence import RolloutEvidenceState, metrics_in_use
from headrace.rollout.outcomes import Names, Outcome, RolloutVerdict
from headrace.rollout.readings import (
    ArmCounts,
    Increment,
    PairCounts,
    RewardSums,
    UnitTally,
)
from tests.unit.rollout.readings import in_buckets, seconds

NAMES = Names("version 1", "version 2")
LATENCY_ONLY = MetricsSpec(errors=None, rejections=None, predictions=None)
TOKENS_ONLY = MetricsSpec(
    errors=None,
    rejections=None,
    latency=None,
    predictions=None,
    crashes=None,
    time_per_output_token=TimePerOutputTokenSpec(),
    output_tokens=OutputTokensSpec(),
)
ERRORS_ONLY = MetricsSpec(errors=ErrorsSpec(), rejections=None, latency=None, predictions=None)


def watched(
    settings: RolloutSpec,
    increments: Iterable[Increment],
    count: int,
    units: UnitTally | None = None,
) -> tuple[RolloutEvidenceState, RolloutVerdict]:
    evidence = RolloutEvidenceState.start(settings)
    if units is not None:
        evidence.note_units(units)
    for increment in itertools.islice(increments, count):
        evidence.add(increment)
    return evidence, evidence.verdict(1000.0, NAMES)


def second(share: float = 0.5, **counts: tuple[int, int]) -> Increment:
    """Exact numbers, pairs are baseline's and candidate's."""
    arms = [
        ArmCounts(**{name: pair[i] for name, pair in counts.items()})  # type: ignore[arg-type]  # all are counts
        for i in range(2)
    ]
    return Increment(at=1.0, duration_s=1.0, share=share, baseline=arms[0], candidate=arms[1])


def streams(times_slower: float = 1.0, times_longer: float = 1.0) -> Iterator[Increment]:
    """Ten streams per version and second, of 20 to 24 ms a token and 24 to 52 tokens."""

    def arm(slower: float, longer: float) -> ArmCounts:
        lower_s = tuple(slower * ms / 1000 for ms in range(20, 25))
        return ArmCounts(
            requests=10,
            per_token=in_buckets(lower_s=lower_s, width_s=(0.001,) * 5, counts=(2,) * 5),
            output_tokens={round(longer * tokens): 2 for tokens in (24, 31, 38, 45, 52)},
        )

    while True:
        yield Increment(
            at=1.0,
            duration_s=1.0,
            share=0.5,
            baseline=arm(1.0, 1.0),
            candidate=arm(times_slower, times_longer),
        )


@pytest.mark.parametrize(
    ("times_slower", "times_longer", "outcomes", "text"),
    [
        (1.0, 1.0, ["promote", "promote"], "1 times, "),
        (0.7, 1.0, ["promote", "promote"], "0.707 times, "),
        (1.3, 1.0, ["roll_back", "promote"], "p50 is 29.1 ms in "),
        (1.0, 2.0, ["promote", "roll_back"], "have at most 48 tokens"),
        (1.0, 0.5, ["promote", "roll_back"], "have at most 24 tokens"),
    ],
)
def test_slow_tokens_and_answers_of_another_length_roll_back(
    times_slower: float, times_longer: float, outcomes: list[str], text: str
) -> None:
    settings = CanarySpec(metrics=TOKENS_ONLY)

    _, verdict = watched(settings, streams(times_slower, times_longer), 60)

    assert [metric.metric for metric in verdict.metrics] == [
        "time_per_output_token",
        "output_tokens",
    ]
    assert [metric.outcome.value for metric in verdict.metrics] == outcomes
    assert text in verdict.explanation


def test_metrics_of_tokens_do_not_judge_answers_without_tokens() -> None:
    metrics = msgspec.structs.replace(TOKENS_ONLY, errors=ErrorsSpec())

    _, verdict = watched(CanarySpec(metrics=metrics), seconds(1, errors=(0.0, 0.0)), 120)

    assert verdict.outcome is Outcome.PROMOTE
    assert [metric.metric for metric in verdict.metrics] == ["errors"]
    assert (
        "time_per_output_token: not judged, no version has streamed tokens" in verdict.explanation
    )
    assert "output_tokens: not judged, no version has reported" in verdict.explanation


def test_a_version_that_streams_nothing_is_not_promoted() -> None:
    (increment,) = itertools.islice(streams(), 1)
    silent = msgspec.structs.replace(increment, candidate=ArmCounts(requests=10))

    _, verdict = watched(CanarySpec(metrics=TOKENS_ONLY), itertools.repeat(silent), 60)

    assert verdict.outcome is Outcome.WAIT
    assert "no requests to version 2 timed yet" in verdict.explanation


def test_a_good_version_is_promoted_and_every_metric_says_why() -> None:
    _, verdict = watched(CanarySpec(), seconds(1, errors=(0.001, 0.001)), 120)

    assert verdict.outcome is Outcome.PROMOTE
    assert verdict.at == 1000.0
    assert [m.metric for m in verdict.metrics] == ["errors", "rejections", "latency", "predictions"]
    for metric in verdict.metrics:
        assert metric.outcome is Outcome.PROMOTE
        assert metric.alpha == pytest.approx(0.05)
        assert metric.reason in verdict.explanation
        assert metric.reason.endswith(" tolerated: within what is tolerated")
        assert metric.low is not None
        assert metric.effect is not None
        assert metric.high is not None
        assert metric.low <= metric.effect <= metric.high
        assert metric.margin is not None
        assert metric.high <= metric.margin
        assert min(metric.samples) > 4000


def test_failing_answers_roll_back_and_lead_the_explanation() -> None:
    _, verdict = watched(CanarySpec(), seconds(2, share=0.1, errors=(0.001, 0.05)), 60)

    assert verdict.outcome is Outcome.ROLL_BACK
    errors = verdict.metric("errors")
    assert errors is not None
    assert errors.outcome is Outcome.ROLL_BACK
    assert errors.low is not None
    assert errors.low > 0.005
    assert verdict.explanation.startswith("errors: ")
    first = verdict.explanation.split("\n")[0]
    assert "failed on version 2 against" in first
    assert "on version 1: difference +" in first
    assert (
        "with 95 % confidence at any time; 0.5 points are tolerated: worse than tolerated" in first
    )


def test_a_slow_tail_rolls_back() -> None:
    _, verdict = watched(CanarySpec(), seconds(3, times_slower=3.0), 10)

    latency = verdict.metric("latency")
    assert verdict.outcome is Outcome.ROLL_BACK
    assert latency is not None
    assert latency.outcome is Outcome.ROLL_BACK
    assert latency.unit == "times"
    assert latency.baseline is not None
    assert latency.candidate is not None
    assert latency.candidate > 2 * latency.baseline
    assert "p99 is" in latency.reason
    assert "1.25 times are tolerated: worse" in latency.reason


def test_other_predictions_roll_back() -> None:
    _, verdict = watched(CanarySpec(), seconds(4, yes=(0.3, 0.6)), 20)

    predictions = verdict.metric("predictions")
    assert verdict.outcome is Outcome.ROLL_BACK
    assert predictions is not None
    assert predictions.outcome is Outcome.ROLL_BACK
    assert predictions.low is not None
    assert predictions.low > 0.1
    assert "the largest change of 2" in predictions.reason
    assert predictions.reason.endswith("they have changed")


def test_a_score_instead_of_a_class_is_another_prediction() -> None:
    increments = (
        msgspec.structs.replace(
            increment,
            candidate=msgspec.structs.replace(
                increment.candidate,
                classes={},
                scores={0.5: increment.candidate.requests},
            ),
        )
        for increment in seconds(15)
    )

    _, verdict = watched(CanarySpec(), increments, 30)

    assert verdict.outcome is Outcome.ROLL_BACK
    assert verdict.explanation.startswith("predictions: ")


def test_refusals_roll_back() -> None:
    _, verdict = watched(CanarySpec(), seconds(5, rejections=(0.0, 0.1)), 12)

    assert verdict.outcome is Outcome.ROLL_BACK
    assert verdict.explanation.startswith("rejections: ")


def test_worse_but_shown_to_be_tolerated_is_promoted() -> None:
    settings = CanarySpec(
        metrics=msgspec.structs.replace(ERRORS_ONLY, errors=ErrorsSpec(margin=0.2))
    )

    _, verdict = watched(settings, seconds(6, errors=(0.0, 0.05)), 60)

    errors = verdict.metric("errors")
    assert errors is not None
    assert errors.low is not None
    assert errors.low > 0.0
    assert verdict.outcome is Outcome.PROMOTE


def test_no_data_waits() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec())

    verdict = evidence.verdict(1.0, NAMES)

    assert verdict.outcome is Outcome.WAIT
    assert [m.outcome for m in verdict.metrics] == [Outcome.WAIT] * 4
    assert "errors: no requests to version 1 counted yet" in verdict.explanation
    assert "latency: no requests to version 1 timed yet" in verdict.explanation
    assert "predictions: no answers of both versions counted yet" in verdict.explanation


def test_a_missing_arm_is_named() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec())
    evidence.add(second(requests=(500, 0)))

    assert (
        "errors: no requests to version 2 counted yet" in evidence.verdict(1.0, NAMES).explanation
    )


def test_a_metric_without_data_keeps_the_others_from_promoting() -> None:
    increments = (
        msgspec.structs.replace(
            increment,
            baseline=msgspec.structs.replace(increment.baseline, classes={}),
            candidate=msgspec.structs.replace(increment.candidate, classes={}),
        )
        for increment in seconds(7)
    )

    evidence, verdict = watched(CanarySpec(), increments, 120)

    assert verdict.outcome is Outcome.WAIT
    assert [m.metric for m in verdict.metrics if m.outcome is Outcome.WAIT] == ["predictions"]
    evidence.leave_out("predictions", "the model's output is neither a class nor a score")
    later = evidence.verdict(1001.0)
    assert later.outcome is Outcome.PROMOTE
    assert later.metric("predictions") is None
    assert later.metrics[0].alpha == pytest.approx(0.05)
    assert later.explanation.endswith(
        "predictions: not judged, the model's output is neither a class nor a score"
    )


def test_nothing_to_judge_never_promotes() -> None:
    nothing = MetricsSpec(errors=None, rejections=None, latency=None, predictions=None)

    _, verdict = watched(CanarySpec(metrics=nothing), seconds(8), 20)

    assert verdict.outcome is Outcome.WAIT
    assert verdict.metrics == ()
    assert "no metric judges this rollout" in verdict.explanation


def test_a_fixed_threshold_of_errors_holds_whatever_the_baseline_does() -> None:
    settings = CanarySpec(
        metrics=msgspec.structs.replace(ERRORS_ONLY, errors=ErrorsSpec(max_ratio=0.02))
    )

    _, verdict = watched(settings, seconds(9, errors=(0.1, 0.1)), 20)

    errors = verdict.metric("errors")
    assert verdict.outcome is Outcome.ROLL_BACK
    assert errors is not None
    assert errors.margin == 0.02
    assert errors.reason.endswith("at most 2 % are tolerated: more than the fixed threshold")


def test_a_fixed_threshold_that_is_kept_does_not_decide() -> None:
    settings = CanarySpec(
        metrics=msgspec.structs.replace(
            ERRORS_ONLY,
            errors=ErrorsSpec(max_ratio=0.05),
            latency=LatencySpec(max_s=0.2),
        )
    )

    _, verdict = watched(settings, seconds(10, errors=(0.001, 0.001)), 120)

    assert verdict.outcome is Outcome.PROMOTE
    assert [m.unit for m in verdict.metrics] == ["ratio difference", "times"]


def test_a_fixed_threshold_of_latency_holds_whatever_the_baseline_does() -> None:
    settings = CanarySpec(
        metrics=MetricsSpec(
            errors=None, rejections=None, predictions=None, latency=LatencySpec(max_s=0.03)
        )
    )

    _, verdict = watched(settings, seconds(11), 20)

    assert verdict.outcome is Outcome.ROLL_BACK
    assert "took longer than the fixed threshold of 30 ms" in verdict.explanation
    assert verdict.explanation.endswith("where 1 % may: too slow")


def test_blue_green_is_judged_by_fixed_thresholds_only() -> None:
    settings = BlueGreenSpec(
        metrics=MetricsSpec(errors=ErrorsSpec(max_ratio=0.02), latency=LatencySpec(max_s=0.2))
    )
    good = (msgspec.structs.replace(i, share=1.0) for i in seconds(12, share=0.99))
    bad = (msgspec.structs.replace(i, share=1.0) for i in seconds(12, share=0.99, errors=(0, 0.1)))

    _, kept = watched(settings, good, 30)
    _, broken = watched(settings, bad, 30)

    assert [m.metric for m in kept.metrics] == ["errors", "latency"]
    assert kept.metrics[0].alpha == pytest.approx(0.05)
    assert kept.outcome is Outcome.PROMOTE
    assert "rejections: not judged, before and after a switch there is only one version" in (
        kept.explanation
    )
    assert broken.outcome is Outcome.ROLL_BACK
    assert RolloutEvidenceState.start(settings).verdict(0.0).outcome is Outcome.WAIT


def test_blue_green_without_thresholds_has_no_verdict() -> None:
    settings = BlueGreenSpec(metrics=MetricsSpec(errors=ErrorsSpec(max_ratio=None)))
    _, verdict = watched(settings, seconds(13), 10)

    assert verdict.outcome is Outcome.WAIT
    assert verdict.metrics == ()
    assert metrics_in_use(settings)[0] == ()


def pairs(pairs: int, disagreements: int, unanswered: int = 0) -> Increment:
    counts = PairCounts(
        pairs=pairs, disagreements=disagreements, unanswered=unanswered, distance_sum=0.5
    )
    return Increment(at=1.0, duration_s=1.0, share=0.0, pairs=counts)


@pytest.mark.parametrize(
    ("increment", "outcome"),
    [
        (pairs(100, 0), Outcome.PROMOTE),
        (pairs(100, 5), Outcome.ROLL_BACK),
        (pairs(100, 1), Outcome.WAIT),
        (pairs(100, 0, 20), Outcome.ROLL_BACK),
    ],
)
def test_a_shadow_is_judged_by_its_answers_and_its_failures(
    increment: Increment, outcome: Outcome
) -> None:
    settings = ShadowSpec(metrics=MetricsSpec(disagreement=DisagreementSpec()))

    evidence, verdict = watched(settings, [increment] * 20, 20)

    assert [m.metric for m in verdict.metrics] == ["errors", "disagreement"]
    assert verdict.outcome is outcome
    assert "pairs of answers differ on version 2" in verdict.explanation
    assert "latency: not judged, responses to copies reach no caller" in verdict.explanation
    assert evidence.summary()["mean_distance"] == pytest.approx(0.5 / 100)


def test_copies_that_fail_count_as_different_where_errors_are_not_judged() -> None:
    settings = ShadowSpec(metrics=MetricsSpec(errors=None, disagreement=DisagreementSpec()))

    _, verdict = watched(settings, [pairs(100, 0, 20)] * 20, 20)

    assert [m.metric for m in verdict.metrics] == ["disagreement"]
    assert verdict.outcome is Outcome.ROLL_BACK
    assert verdict.metrics[0].samples == (0, 2400)


def rewards(units: int, a: float, b: float) -> Increment:
    return Increment(
        at=1.0,
        duration_s=1.0,
        share=0.5,
        baseline_reward=RewardSums(units=units, mean=a, squares=units * 0.25),
        candidate_reward=RewardSums(units=units, mean=b, squares=units * 0.25),
        baseline=ArmCounts(requests=units),
        candidate=ArmCounts(requests=units),
    )


REWARD_ONLY = AbSpec(
    metrics=MetricsSpec(
        errors=None, rejections=None, latency=None, predictions=None, reward=RewardSpec()
    )
)


@pytest.mark.parametrize(
    ("units", "difference", "outcome"),
    [
        (5000, 0.1, Outcome.PROMOTE),
        (5000, -0.1, Outcome.ROLL_BACK),
        (5000, 0.0, Outcome.WAIT),
        (99, 5.0, Outcome.WAIT),
    ],
)
def test_the_reward_decides_an_ab_test(units: int, difference: float, outcome: Outcome) -> None:
    _, verdict = watched(REWARD_ONLY, [rewards(units, 1.0, 1.0 + difference)], 1)

    assert [m.metric for m in verdict.metrics] == ["reward", "assignment"]
    assert verdict.outcome is outcome
    if units < 100:
        assert "99 units of version 1 and 99 of version 2 have a reward" in verdict.explanation
    else:
        assert verdict.metrics[0].effect == pytest.approx(difference)


def test_equal_rewards_wait() -> None:
    increment = rewards(500, 1.0, 1.0)
    flat = RewardSums(units=500, mean=1.0)
    increment = msgspec.structs.replace(increment, baseline_reward=flat, candidate_reward=flat)

    _, verdict = watched(REWARD_ONLY, [increment], 1)

    assert verdict.outcome is Outcome.WAIT
    assert "reward: all rewards are equal so far" in verdict.explanation


def test_a_split_that_is_not_as_planned_keeps_a_winner_from_winning() -> None:
    winner = rewards(5000, 1.0, 1.2)
    lost = msgspec.structs.replace(winner, candidate=ArmCounts(requests=4000))
    units = UnitTally(first={0.5: (5000, 4000)}, requests=9000, squares=9000)

    _, verdict = watched(REWARD_ONLY, [lost], 1, units)

    assignment = verdict.metric("assignment")
    assert assignment is not None
    assert assignment.outcome is Outcome.WAIT
    assert assignment.alpha == 0.001
    assert "assignment: 44.4 % of 9,000 units went to version 2, 50 % were planned" in (
        verdict.explanation
    )
    assert verdict.outcome is Outcome.WAIT


def test_without_sticky_keys_requests_are_the_units() -> None:
    _, verdict = watched(
        msgspec.structs.replace(REWARD_ONLY, metrics=ERRORS_ONLY),
        [second(requests=(5000, 4000))],
        1,
    )

    assert "of 9,000 requests went to version 2" in verdict.explanation
    assert RolloutEvidenceState.start(REWARD_ONLY).verdict(0.0).metric("assignment") is not None


def test_many_requests_of_few_users_prove_little() -> None:
    # One user in ten sends what is refused, and all of those happen to be on one arm.
    counted = [second(requests=(100, 100), rejections=(0, 10))] * 10
    few = UnitTally(first={0.5: (10, 10)}, requests=2000, squares=20 * 100**2)
    settings = CanarySpec(metrics=MetricsSpec(errors=None, latency=None, predictions=None))

    _, by_request = watched(settings, counted, 10)
    _, by_user = watched(settings, counted, 10, few)

    assert by_request.outcome is Outcome.ROLL_BACK
    assert by_user.outcome is Outcome.WAIT


def test_users_of_whom_one_sends_most_prove_as_little_as_few_users() -> None:
    """Twenty users, or two thousand of whom one sends more than a fifth of all requests."""
    counted = [second(requests=(100, 100), rejections=(0, 10))] * 10
    settings = CanarySpec(metrics=MetricsSpec(errors=None, latency=None, predictions=None))
    few = UnitTally(first={0.5: (10, 10)}, requests=2000, squares=20 * 100**2)
    unequal = UnitTally(first={0.5: (1000, 1000)}, requests=2000, squares=446**2 + 1554)

    lows = [watched(settings, counted, 10, units)[1].metrics[0].low for units in (few, unequal)]

    assert lows[0] == pytest.approx(lows[1], abs=1e-3)


def test_rows_of_one_request_are_one_observation() -> None:
    def classes(factor: int) -> Increment:
        a, b = ({"x": factor * x, "y": factor * (50 - x)} for x in (10, 25))
        return Increment(
            at=1.0,
            duration_s=1.0,
            share=0.5,
            baseline=ArmCounts(requests=50, classes=a),
            candidate=ArmCounts(requests=50, classes=b),
        )

    settings = CanarySpec(
        metrics=MetricsSpec(
            errors=None, rejections=None, latency=None, predictions=PredictionsSpec()
        )
    )

    _, single = watched(settings, [classes(1)] * 3, 3)
    _, batched = watched(settings, [classes(64)] * 3, 3)

    assert single.metrics[0].low == pytest.approx(batched.metrics[0].low, abs=0.02)


def test_the_summary_counts() -> None:
    units = UnitTally(first={0.1: (27, 3)}, requests=300, squares=3000)
    evidence, _ = watched(CanarySpec(), [second(requests=(90, 10))] * 3, 3, units)

    summary = evidence.summary()

    assert summary["baseline_requests"] == 270
    assert summary["candidate_requests"] == 30
    assert summary["candidate_units"] == 3
    assert summary["intervals"] == 3
    assert summary["counted_s"] == 3.0


@pytest.mark.parametrize(
    "settings",
    [
        CanarySpec(),
        AbSpec(metrics=MetricsSpec(reward=RewardSpec())),
        ShadowSpec(metrics=MetricsSpec(disagreement=DisagreementSpec())),
        BlueGreenSpec(metrics=MetricsSpec(latency=LatencySpec(max_s=0.1))),
        CanarySpec(metrics=TOKENS_ONLY),
    ],
)
def test_a_restart_changes_nothing(settings: RolloutSpec) -> None:
    increments = [
        *itertools.islice(seconds(21, share=0.25, errors=(0.01, 0.01)), 12),
        *itertools.islice(streams(), 6),
    ]
    whole = RolloutEvidenceState.start(settings)
    restarted = RolloutEvidenceState.start(settings)
    for increment in increments:
        whole.add(increment)
        restarted = RolloutEvidenceState.decode(settings, restarted.encode())
        restarted.add(increment)

    assert restarted.encode() == whole.encode()
    assert restarted.verdict(5.0, NAMES) == whole.verdict(5.0, NAMES)
    assert restarted.summary() == whole.summary()


def test_what_was_noted_over_time_survives_a_restart_in_few_bytes() -> None:
    settings = CanarySpec()
    evidence = RolloutEvidenceState.start(settings)
    for increment in itertools.islice(seconds(22), 8):
        evidence.add(increment)
    bare = len(evidence.encode())
    verdict = evidence.verdict(0.0)
    for at in range(500):
        evidence.note(msgspec.structs.replace(verdict, at=float(at)))

    again = RolloutEvidenceState.decode(settings, evidence.encode())

    assert again.encode() == evidence.encode()
    assert len(again.encode()) - bare < 10_000
    metric = again.sequences.metrics[0]
    points = list(again.sequences.points(metric))
    assert (metric.metric, points[0].at, points[-1].at) == ("errors", 0.0, 499.0)
    again.note(msgspec.structs.replace(verdict, at=500.0))
    assert again.sequences.times[-1] == 500.0


def test_evidence_from_before_anything_was_noted_over_time_is_read() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec())
    evidence.add(second(requests=(30, 30)))
    stored = msgspec.msgpack.decode(evidence.encode())
    del stored["sequences"]

    again = RolloutEvidenceState.decode(CanarySpec(), msgspec.msgpack.encode(stored))

    assert again.summary() == evidence.summary()
    assert again.sequences.metrics == []


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from([0.05, 0.25, 0.5]), st.integers(0, 200), st.integers(0, 50)),
        min_size=1,
        max_size=8,
    )
)
def test_encoding_is_exact_whatever_was_counted(rows: list[tuple[float, int, int]]) -> None:
    settings = CanarySpec()
    evidence = RolloutEvidenceState.start(settings)
    for share, requests, errors in rows:
        evidence.add(second(share, requests=(requests + errors, errors), errors=(errors, errors)))

    again = RolloutEvidenceState.decode(settings, evidence.encode())

    assert again.encode() == evidence.encode()
    assert again.verdict(1.0) == evidence.verdict(1.0)


COUNTS = st.integers(0, 50)
BUCKETS = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.011, 0.1, 2.5]), COUNTS), max_size=5)
ARMS = st.builds(
    lambda requests, errors, rejections, buckets, classes, scores: ArmCounts(
        requests=requests,
        errors=errors,
        rejections=rejections,
        latency=in_buckets(
            lower_s=tuple(sorted(dict(buckets))),
            width_s=tuple(0.001 for _ in dict(buckets)),
            counts=tuple(count for _, count in sorted(dict(buckets).items())),
        ),
        classes=classes,
        scores=scores,
        per_token=in_buckets(lower_s=(0.02,), width_s=(0.001,), counts=(requests,)),
        output_tokens={errors: requests, 24: rejections},
    ),
    COUNTS,
    COUNTS,
    COUNTS,
    BUCKETS,
    st.dictionaries(st.sampled_from(["a", "b"]), COUNTS),
    st.dictionaries(st.sampled_from([0.25, 0.5, 1.0]), COUNTS),
)
RATIOS = st.sampled_from([0.0, 0.01, 1.0])
SETTINGS = st.builds(
    lambda margin, ratio, max_s, quantile: MetricsSpec(
        errors=ErrorsSpec(margin=margin, max_ratio=ratio),
        rejections=RejectionsSpec(margin=ratio),
        latency=LatencySpec(quantile=quantile, margin_ratio=1.0 + margin, max_s=max_s),
        predictions=PredictionsSpec(margin=margin),
        disagreement=DisagreementSpec(max_ratio=ratio),
        time_per_output_token=TimePerOutputTokenSpec(quantile=quantile),
        output_tokens=OutputTokensSpec(margin=margin),
    ),
    RATIOS,
    RATIOS,
    st.sampled_from([None, 0.01]),
    st.sampled_from([0.01, 0.5, 0.999]),
)


@pytest.mark.slow
@given(
    SETTINGS,
    st.sampled_from([CanarySpec, AbSpec, ShadowSpec, BlueGreenSpec]),
    st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.5, 1.0]), ARMS, ARMS), max_size=6),
)
def test_whatever_is_counted_there_is_a_verdict_with_finite_numbers(
    metrics: MetricsSpec,
    strategy: Callable[..., RolloutSpec],
    rows: list[tuple[float, ArmCounts, ArmCounts]],
) -> None:
    evidence = RolloutEvidenceState.start(strategy(metrics=metrics))
    for at, (share, baseline, candidate) in enumerate(rows):
        evidence.add(
            Increment(at=at, duration_s=30.0, share=share, baseline=baseline, candidate=candidate)
        )

    verdict = evidence.verdict(1.0)

    assert verdict.explanation
    for metric in verdict.metrics:
        numbers = (metric.baseline, metric.candidate, metric.effect, metric.low, metric.high)
        assert all(number is None or math.isfinite(number) for number in numbers)
        if metric.low is not None and metric.high is not None:
            assert metric.low <= metric.high


@pytest.mark.parametrize("data", [b"", b"\x80", b"nonsense"])
def test_damaged_evidence_is_refused(data: bytes) -> None:
    with pytest.raises(FailedPreconditionError, match="start the rollout again"):
        RolloutEvidenceState.decode(CanarySpec(), data)


def test_evidence_of_another_format_is_refused() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec())
    evidence._counts.format = 99

    with pytest.raises(FailedPreconditionError, match="has format 99"):
        RolloutEvidenceState.decode(CanarySpec(), evidence.encode())


@pytest.mark.slow
@given(st.integers(1, 12), st.integers(1, 40))
def test_a_roll_back_stands_while_only_the_candidate_fails(seconds: int, failures: int) -> None:
    evidence = RolloutEvidenceState.start(CanarySpec(metrics=ERRORS_ONLY))
    outcomes = []
    for _ in range(seconds):
        evidence.add(second(0.2, requests=(80, 20 + failures), errors=(0, failures)))
        outcomes.append(evidence.verdict(1.0).outcome)

    assert outcomes == sorted(outcomes, key=lambda outcome: outcome is Outcome.ROLL_BACK)


@pytest.mark.slow
@given(st.integers(1, 20))
def test_a_promotion_stands_while_nothing_fails(seconds: int) -> None:
    evidence = RolloutEvidenceState.start(CanarySpec(metrics=ERRORS_ONLY))
    outcomes = []
    for _ in range(seconds):
        evidence.add(second(0.5, requests=(100, 100)))
        outcomes.append(evidence.verdict(1.0).outcome)

    assert outcomes == sorted(outcomes, key=lambda outcome: outcome is Outcome.PROMOTE)
    assert Outcome.ROLL_BACK not in outcomes


def test_a_version_that_turns_bad_is_rolled_back_whatever_its_past() -> None:
    good = second(0.1, requests=(45, 5))
    half_an_hour = msgspec.structs.replace(
        second(0.1, requests=(81_000, 9_000), errors=(81, 9)), duration_s=1800.0
    )
    bad = second(0.1, requests=(45, 5), errors=(0, 1))

    evidence, before = watched(CanarySpec(metrics=ERRORS_ONLY), [good, half_an_hour, good], 3)
    seconds_taken = 0
    while evidence.verdict(1.0).outcome is not Outcome.ROLL_BACK:
        evidence.add(bad)
        seconds_taken += 1

    assert before.outcome is Outcome.PROMOTE
    assert seconds_taken <= 10
    assert "it has become worse than that, lately" in evidence.verdict(1.0).explanation


def test_a_version_that_turns_slow_is_rolled_back_whatever_its_past() -> None:
    evidence = RolloutEvidenceState.start(
        CanarySpec(metrics=MetricsSpec(errors=None, rejections=None, predictions=None))
    )
    for increment in itertools.islice(seconds(30, times_slower=0.7), 150):
        evidence.add(increment)
    verdicts = [evidence.verdict(1.0)]

    for increment in itertools.islice(seconds(31, times_slower=3.0), 12):
        evidence.add(increment)
        verdicts.append(evidence.verdict(1.0))

    assert verdicts[0].outcome is Outcome.PROMOTE
    assert verdicts[-1].outcome is Outcome.ROLL_BACK
    first = next(verdict for verdict in verdicts if verdict.outcome is Outcome.ROLL_BACK)
    assert first.explanation.endswith("it has become slower than that")


def test_an_outage_of_both_versions_rolls_nothing_back() -> None:
    calm, outage = (second(0.1, requests=(900, 100), errors=e) for e in ((9, 1), (450, 50)))

    _, verdict = watched(CanarySpec(metrics=ERRORS_ONLY), [calm] * 30 + [outage] * 30, 60)

    assert verdict.outcome is Outcome.WAIT


def test_a_latency_without_a_bound_says_so() -> None:
    latency = in_buckets(lower_s=(0.0,), width_s=(0.001,), counts=(10,))
    arm = ArmCounts(requests=10, latency=latency)
    increment = Increment(at=1.0, duration_s=1.0, share=0.5, baseline=arm, candidate=arm)

    _, verdict = watched(CanarySpec(), [increment] * 2, 2)

    assert "with no bound yet" in verdict.explanation
    assert verdict.outcome is Outcome.WAIT


def test_a_faster_version_is_told_to_be_faster() -> None:
    _, verdict = watched(CanarySpec(), seconds(14, times_slower=0.3), 60)

    latency = verdict.metric("latency")
    assert latency is not None
    assert latency.high is not None
    assert latency.high < 0.9
    assert f"less than {latency.high:g} with 95 % confidence" in latency.reason


def test_names_are_the_versions_where_none_are_given() -> None:
    evidence = RolloutEvidenceState.start(
        CanarySpec(metrics=MetricsSpec(rejections=RejectionsSpec()))
    )
    evidence.add(second(requests=(10, 10)))

    assert "on the new version against" in evidence.verdict(1.0).explanation


def test_an_earlier_step_is_no_credit_for_a_later_one() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec(metrics=ERRORS_ONLY))
    for _ in range(600):
        evidence.add(second(0.05, requests=(190, 10)))
    before = evidence.verdict(1.0)

    outcomes = []
    for _ in range(4):
        bad = second(0.5, requests=(100, 100), errors=(0, 1))
        evidence.add(msgspec.structs.replace(bad, step=1))
        outcomes.append(evidence.verdict(1.0).outcome)

    assert before.outcome is Outcome.PROMOTE
    assert Outcome.PROMOTE not in outcomes


def test_a_canary_whose_split_was_not_kept_waits_and_says_why() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec(metrics=ERRORS_ONLY))
    for _ in range(600):
        evidence.add(second(0.1, requests=(860, 140), errors=(43, 7)))

    verdict = evidence.verdict(1.0)

    assert verdict.outcome is Outcome.WAIT
    assert "14 % of 600,000 requests went to the new version, 10 % were planned" in (
        verdict.explanation
    )


def test_a_version_that_fails_outright_is_rolled_back_whatever_the_split() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec(metrics=ERRORS_ONLY))
    for _ in range(60):
        evidence.add(second(0.1, requests=(43, 7), errors=(0, 7)))

    assert evidence.verdict(1.0).outcome is Outcome.ROLL_BACK


def test_what_is_under_way_when_a_step_begins_is_no_wrong_split_for_long() -> None:
    # Answers take 4 s, so for 4 s only requests of the step before end.
    evidence = RolloutEvidenceState.start(CanarySpec(metrics=ERRORS_ONLY))
    for moment in range(300):
        sent = (95, 5) if moment < 4 else (50, 50)
        evidence.add(second(0.5, requests=sent))

    assert evidence.verdict(1.0).metric("assignment") is None


def test_sticky_callers_need_not_send_their_share_of_the_requests() -> None:
    evidence = RolloutEvidenceState.start(CanarySpec(metrics=ERRORS_ONLY))
    for _ in range(300):
        increment = second(0.1, requests=(43, 7))
        evidence.add(msgspec.structs.replace(increment, is_sticky=True))

    assert evidence.verdict(1.0).outcome is Outcome.PROMOTE


def test_a_version_whose_tail_hides_that_it_is_slower_is_told_by_its_median() -> None:
    def timed(lower_s: float) -> ArmCounts:
        latency = in_buckets(lower_s=(lower_s, 1.0), width_s=(0.001, 0.1), counts=(97, 3))
        return ArmCounts(requests=100, latency=latency)

    increment = Increment(
        at=1.0, duration_s=1.0, share=0.5, baseline=timed(0.01), candidate=timed(0.02)
    )

    _, verdict = watched(CanarySpec(metrics=LATENCY_ONLY), [increment] * 30, 30)

    assert verdict.outcome is Outcome.ROLL_BACK
    assert "latency: p50 is" in verdict.explanation


def test_at_a_cliff_the_shares_beyond_it_are_compared() -> None:
    def timed(fast: int, slow: int) -> ArmCounts:
        latency = in_buckets(lower_s=(0.01, 0.1), width_s=(0.001, 0.01), counts=(fast, slow))
        return ArmCounts(requests=fast + slow, latency=latency)

    settings = CanarySpec(metrics=LATENCY_ONLY)
    evidence = {share: RolloutEvidenceState.start(settings) for share in (9, 9.5, 30)}
    for share, watched_one in evidence.items():
        slow = round(10 * share)
        increment = Increment(
            at=1.0,
            duration_s=1.0,
            share=0.5,
            baseline=timed(9910, 90),
            candidate=timed(10_000 - slow, slow),
        )
        for _ in range(30):
            watched_one.add(increment)
    verdicts = {share: each.verdict(1.0) for share, each in evidence.items()}

    assert verdicts[9].outcome is Outcome.PROMOTE
    assert verdicts[9.5].outcome is Outcome.PROMOTE
    assert verdicts[30].outcome is Outcome.ROLL_BACK
    assert "there is a cliff at p99, so the requests beyond 11 ms are compared, 3 % against" in (
        verdicts[30].explanation
    )
