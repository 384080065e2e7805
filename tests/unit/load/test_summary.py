"""Result of a run and the judged objectives."""

import math

import numpy as np
import pytest

from headrace.core import InvalidArgumentError
from headrace.load.intervals import ConfidenceInterval
from headrace.load.plan import LoadPlan
from headrace.load.summary import (
    LEFT_OUT,
    NOT_SENT,
    SUCCEEDED,
    LoadObjective,
    ObjectiveVerdict,
    RunRecord,
    RunSample,
    judge,
    parse_objectives,
    summarize,
)

PLAN = LoadPlan(rate_per_s=100.0, seconds=10.0, warm_up_s=2.0)
COUNT = 1200


def run(latency_s: float = 0.01, lag_s: float = 0.0) -> RunRecord:
    """A run of `PLAN` in which each answer took as long, to the microsecond."""
    record = RunRecord.from_intended(np.arange(COUNT) / 100)
    jitter_s = np.random.default_rng(1).random(COUNT) * 1e-6
    for i, intended in enumerate(record.intended):
        record.handled[i] = intended + lag_s + 1e-9
        record.done[i] = intended + latency_s + jitter_s[i]
        record.code[i] = SUCCEEDED
    return record


def fail(record: RunRecord, numbers: range, kind: str) -> None:
    for i in numbers:
        record.code[i] = record.code_of(kind)


def test_figures_are_of_what_was_due_after_the_warm_up() -> None:
    record = run()
    for i in range(200):
        record.done[i] += 1.0  # slow while it warmed up

    result = summarize(record.sample(), PLAN)

    assert result.requests == 1000
    assert result.seconds == 10
    assert result.latency_s[0.999] is not None
    assert result.latency_s[0.999].value == pytest.approx(0.01, rel=1e-3)
    assert result.failed == 0
    assert result.verdict is None


def test_what_comes_too_late_is_not_achieved_in_time() -> None:
    result = summarize(run(latency_s=5.0).sample(), PLAN)

    assert result.requests == 1000
    assert result.achieved_per_s == pytest.approx(70.0)  # those due in 7 of 10 s


def test_failures_are_counted_by_kind_and_are_no_fast_successes() -> None:
    record = run()
    fail(record, range(300, 400), "http_503")
    fail(record, range(600, 620), "timeout")

    result = summarize(record.sample(), PLAN, objectives=parse_objectives("p99=20ms,error=50%"))

    assert list(result.errors.items()) == [("http_503", 100), ("timeout", 20)]
    assert result.failed == 120
    assert result.error_ratio is not None
    assert result.error_ratio.value == pytest.approx(0.12)
    assert result.latency_s[0.99] is not None
    assert result.latency_s[0.99].value == pytest.approx(0.01, rel=1e-3)
    assert result.latency_of_all_s[0.99] is not None
    assert result.latency_of_all_s[0.99].value == np.inf
    assert result.judgements[0].verdict is not ObjectiveVerdict.MET
    assert result.judgements[1].verdict is ObjectiveVerdict.MET


def test_the_worst_objective_is_the_verdict() -> None:
    def verdict(objectives: str) -> ObjectiveVerdict | None:
        return summarize(run().sample(), PLAN, objectives=parse_objectives(objectives)).verdict

    assert verdict("p50=20ms,p99=30ms") is ObjectiveVerdict.MET
    assert verdict("p50=20ms,p99.9=30ms") is ObjectiveVerdict.UNKNOWN
    assert verdict("p50=2ms,p99.9=30ms") is ObjectiveVerdict.MISSED


def test_a_lag_that_is_a_good_part_of_the_latency_is_told() -> None:
    late = summarize(run(latency_s=0.01, lag_s=0.005).sample(), PLAN)
    punctual = summarize(run(latency_s=0.01, lag_s=0.0005).sample(), PLAN)

    assert late.lag is not None
    assert late.lag.p99_s == pytest.approx(0.005, rel=1e-3)
    assert late.lag.share_p50 == pytest.approx(0.5, rel=1e-3)
    assert "50% of the p50 is its own send lag" in late.limited_by
    assert punctual.limited_by == ""


def test_a_server_is_not_blamed_for_a_late_generator() -> None:
    result = summarize(
        run(latency_s=0.01, lag_s=0.008).sample(),
        PLAN,
        objectives=parse_objectives("p50=5ms,p90=1ms"),
    )

    assert [judged.verdict for judged in result.judgements] == [
        ObjectiveVerdict.UNKNOWN,
        ObjectiveVerdict.MISSED,
    ]


def test_an_overload_that_grows_all_the_time_is_missed_without_an_interval() -> None:
    record = run()
    for i, intended in enumerate(record.intended):
        record.done[i] = intended + 0.1 + intended / 2

    result = summarize(record.sample(), PLAN, objectives=parse_objectives("p95=50ms"))

    assert result.latency_s[0.5] is not None
    assert not result.latency_s[0.5].is_known
    assert result.verdict is ObjectiveVerdict.MISSED


def test_requests_that_were_never_sent_are_no_errors_but_end_all_verdicts() -> None:
    record = run()
    for i in range(1000, COUNT):
        record.code[i], record.handled[i], record.done[i] = NOT_SENT, 0.0, 0.0

    result = summarize(record.sample(), PLAN, objectives=parse_objectives("p50=1s"))

    assert (result.requests, result.not_sent, result.failed) == (800, 200, 0)
    assert "200 of 1,000 requests were not sent" in result.limited_by
    assert result.verdict is ObjectiveVerdict.UNKNOWN


def test_a_run_that_was_ended_by_hand_counts_until_then() -> None:
    record = run()
    for i in range(690, COUNT):
        record.code[i] = LEFT_OUT

    result = summarize(record.sample(), PLAN, stopped_at_s=7.0)

    assert result.interrupted
    assert result.seconds == 5
    assert (result.requests, result.left_out) == (490, 10)
    assert result.achieved_per_s == pytest.approx(98.0, abs=0.5)


@pytest.mark.parametrize("stopped_at_s", [0.0, 1.0, 2.0])
def test_a_run_that_ended_while_it_warmed_up_has_no_figures(stopped_at_s: float) -> None:
    result = summarize(
        run().sample(), PLAN, stopped_at_s=stopped_at_s, objectives=parse_objectives("p50=1s")
    )

    assert (result.requests, result.achieved_per_s, result.lag) == (0, 0.0, None)
    assert result.latency_s[0.5] is None
    assert result.error_ratio is None
    assert result.verdict is ObjectiveVerdict.UNKNOWN


def test_nothing_but_failures_has_no_latency() -> None:
    record = run()
    fail(record, range(COUNT), "refused")

    result = summarize(record.sample(), PLAN, objectives=parse_objectives("p50=1s,error=1%"))

    assert result.latency_s[0.5] is None
    assert result.achieved_per_s == 0
    assert [judged.verdict for judged in result.judgements] == [
        ObjectiveVerdict.MISSED,
        ObjectiveVerdict.MISSED,
    ]


def test_an_empty_run_is_no_error() -> None:
    empty = RunSample(
        intended=np.empty(0),
        handled=np.empty(0),
        done=np.empty(0),
        code=np.empty(0, np.int16),
        kinds=("ok",),
    )

    assert summarize(empty, PLAN).requests == 0


P99 = LoadObjective(name="p99", limit=0.02, quantile=0.99)


def measured(
    value: float, low: float | None, high: float | None, needed: int = 0
) -> ConfidenceInterval:
    return ConfidenceInterval(value=value, low=low, high=high, effective=100.0, needed=needed)


def test_objectives_are_read_with_their_units() -> None:
    found = parse_objectives("p50=500us, p99 <= 20ms,p99.9=0.2s, error=0.1%,errors=0.5")

    assert [(each.name, each.quantile) for each in found] == [
        ("p50", 0.5),
        ("p99", 0.99),
        ("p99.9", pytest.approx(0.999)),
        ("error", None),
        ("error", None),
    ]
    assert [each.limit for each in found] == pytest.approx([0.0005, 0.02, 0.2, 0.001, 0.5])


@pytest.mark.parametrize(
    "wrong",
    [
        "p99",
        "p99=",
        "p99=20",
        "p99=20%",
        "p99=0ms",
        "p99=-1ms",
        "p0=1ms",
        "p100=1ms",
        "p99.99999=1ms",
        "q99=1ms",
        "error=5ms",
        "error=100%",
        "error=2",
        "p99=1e9999s",
        "p99=nan ms",
        "=20ms",
        "p99=20ms p50=3ms",
        "\x1b[31m=1ms",
    ],
)
def test_what_is_no_objective_is_refused_and_the_form_is_shown(wrong: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_objectives(wrong)


def test_nothing_is_no_objective() -> None:
    assert parse_objectives("") == []


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (measured(0.01, 0.008, 0.015), ObjectiveVerdict.MET),
        (measured(0.01, 0.008, 0.020), ObjectiveVerdict.MET),
        (measured(0.03, 0.025, 0.040), ObjectiveVerdict.MISSED),
        (measured(0.03, 0.021, None, 900), ObjectiveVerdict.MISSED),
        (measured(math.inf, math.inf, math.inf), ObjectiveVerdict.MISSED),
        (measured(0.01, 0.008, 0.025), ObjectiveVerdict.UNKNOWN),
        (measured(0.01, 0.008, None, 900), ObjectiveVerdict.UNKNOWN),
        (None, ObjectiveVerdict.UNKNOWN),
    ],
)
def test_only_an_interval_on_one_side_of_the_limit_is_a_verdict(
    interval: ConfidenceInterval | None, verdict: ObjectiveVerdict
) -> None:
    found = judge(P99, interval)

    assert found.verdict is verdict
    assert bool(found.reason) == (verdict is ObjectiveVerdict.UNKNOWN)


def test_what_is_missing_is_told_in_round_numbers() -> None:
    assert judge(P99, measured(0.01, 0.008, None, 3687)).reason == "needs about 3,700 requests"


def test_a_late_generator_accuses_no_server_but_may_acquit_it() -> None:
    slow, fast = measured(0.03, 0.025, 0.04), measured(0.01, 0.008, 0.015)

    assert judge(P99, slow, slower=measured(0.04, 0.03, 0.05)).verdict is ObjectiveVerdict.MISSED
    assert judge(P99, fast, slower=measured(0.001, 0.0, 0.004)).verdict is ObjectiveVerdict.MET
    late = judge(P99, slow, slower=measured(0.012, 0.008, 0.02))
    assert late.verdict is ObjectiveVerdict.UNKNOWN
    assert late.reason == "missed only because of the generator's own send lag"


def test_a_rate_that_was_not_reached_proves_nothing() -> None:
    found = judge(P99, measured(0.01, 0.008, 0.015), shortfall="never sent")

    assert (found.verdict, found.reason) == (ObjectiveVerdict.UNKNOWN, "never sent")


def test_no_errors_at_all_are_met_by_a_run_without_one() -> None:
    none = LoadObjective(name="error", limit=0.0)

    assert judge(none, measured(0.0, 0.0, 0.004)).verdict is ObjectiveVerdict.MET
    assert judge(none, measured(0.001, 0.0002, 0.004)).verdict is ObjectiveVerdict.MISSED
