import math

import pytest

from headrace.core import InvalidArgumentError
from headrace.load.intervals import Interval
from headrace.load.summary import Objective, Verdict, judge, parse_objectives

P99 = Objective(name="p99", limit=0.02, quantile=0.99)


def measured(value: float, low: float | None, high: float | None, needed: int = 0) -> Interval:
    return Interval(value=value, low=low, high=high, effective=100.0, needed=needed)


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
        (measured(0.01, 0.008, 0.015), Verdict.MET),
        (measured(0.01, 0.008, 0.020), Verdict.MET),
        (measured(0.03, 0.025, 0.040), Verdict.MISSED),
        (measured(0.03, 0.021, None, 900), Verdict.MISSED),
        (measured(math.inf, math.inf, math.inf), Verdict.MISSED),
        (measured(0.01, 0.008, 0.025), Verdict.UNKNOWN),
        (measured(0.01, 0.008, None, 900), Verdict.UNKNOWN),
        (None, Verdict.UNKNOWN),
    ],
)
def test_only_an_interval_on_one_side_of_the_limit_is_a_verdict(
    interval: Interval | None, verdict: Verdict
) -> None:
    found = judge(P99, interval)

    assert found.verdict is verdict
    assert bool(found.reason) == (verdict is Verdict.UNKNOWN)


def test_what_is_missing_is_told_in_round_numbers() -> None:
    assert judge(P99, measured(0.01, 0.008, None, 3687)).reason == "it takes about 3,700 requests"


def test_a_late_generator_accuses_no_server_but_may_acquit_it() -> None:
    slow, fast = measured(0.03, 0.025, 0.04), measured(0.01, 0.008, 0.015)

    assert judge(P99, slow, slower=measured(0.04, 0.03, 0.05)).verdict is Verdict.MISSED
    assert judge(P99, fast, slower=measured(0.001, 0.0, 0.004)).verdict is Verdict.MET
    late = judge(P99, slow, slower=measured(0.012, 0.008, 0.02))
    assert late.verdict is Verdict.UNKNOWN
    assert late.reason == "only with the generator's own lag is it missed"


def test_a_rate_that_was_not_reached_proves_nothing() -> None:
    found = judge(P99, measured(0.01, 0.008, 0.015), shortfall="never sent")

    assert (found.verdict, found.reason) == (Verdict.UNKNOWN, "never sent")


def test_no_errors_at_all_are_met_by_a_run_without_one() -> None:
    none = Objective(name="error", limit=0.0)

    assert judge(none, measured(0.0, 0.0, 0.004)).verdict is Verdict.MET
    assert judge(none, measured(0.001, 0.0002, 0.004)).verdict is Verdict.MISSED
