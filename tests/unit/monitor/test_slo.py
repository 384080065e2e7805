"""When a promise is broken, by what was counted."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.monitor.alert_kinds import ALERTS
from headrace.monitor.slo import (
    CERTIFICATE_LEFT_S,
    FAST,
    MEDIUM,
    SLOW,
    SLOW_ONE_DAY,
    BurnWindows,
    ConditionReading,
    EndpointFacts,
    EndpointObjective,
    ErrorBurn,
    ErrorsOver,
    Fact,
    LatencyBurn,
    LatencyOver,
    SystemFacts,
    least_requests,
    objectives_of,
    read_endpoint,
    read_system,
    windows_of,
)
from tests.unit.monitor.told import PROMISE, Counted, windows

NOTHING = EndpointFacts()
QUIET = Counted(1000, 0)


def is_bad(reading: ConditionReading | None) -> bool:
    return reading is not None and reading.is_bad


def test_an_error_budget_burns_if_both_windows_say_so() -> None:
    burning = Counted(1000, 20)

    both = read_endpoint(ErrorBurn(FAST), PROMISE, windows(burning), NOTHING)
    over = read_endpoint(ErrorBurn(FAST), PROMISE, windows(burning, s300=QUIET), NOTHING)
    spike = read_endpoint(ErrorBurn(FAST), PROMISE, windows(QUIET, s300=Counted(100, 20)), NOTHING)

    assert both is not None
    assert both.is_bad
    assert both.value == 0.02
    assert both.threshold == pytest.approx(0.0144)
    assert not is_bad(over)
    assert not is_bad(spike)


def test_the_long_window_is_not_asked_for_while_the_short_one_is_well() -> None:
    asked: list[float] = []

    def window(seconds: float) -> Counted:
        asked.append(seconds)
        return QUIET

    read_endpoint(ErrorBurn(FAST), PROMISE, window, NOTHING)
    read_endpoint(LatencyBurn(FAST), PROMISE, window, NOTHING)

    assert asked == [300.0, 300.0]


@pytest.mark.parametrize("errors", range(5))
def test_a_handful_of_failures_wakes_nobody(errors: int) -> None:
    reading = read_endpoint(ErrorBurn(FAST), PROMISE, windows(Counted(5, errors)), NOTHING)

    assert not is_bad(reading)


def test_where_nothing_is_promised_nothing_burns() -> None:
    none = EndpointObjective(endpoint="fraud")
    all_fail = windows(Counted(100, 100, 9.0))

    assert read_endpoint(ErrorBurn(FAST), none, all_fail, NOTHING) is None
    assert read_endpoint(LatencyBurn(FAST), none, all_fail, NOTHING) is None
    assert read_endpoint(LatencyOver(quantile=0.99), none, all_fail, NOTHING) is None
    assert is_bad(read_endpoint(ErrorsOver(ratio=0.05), none, all_fail, NOTHING))


def test_the_usual_limit_of_errors_gives_way_to_a_promise() -> None:
    assert read_endpoint(ErrorsOver(ratio=0.05), PROMISE, windows(Counted(9, 9)), NOTHING) is None


def test_a_latency_budget_burns_where_the_quantile_of_its_factor_is_above_the_promise() -> None:
    slow, fine = Counted(1000, 0, 0.3), Counted(1000, 0, 0.1)

    assert LatencyBurn(FAST).quantile == 0.856
    assert is_bad(read_endpoint(LatencyBurn(FAST), PROMISE, windows(slow), NOTHING))
    assert not is_bad(read_endpoint(LatencyBurn(FAST), PROMISE, windows(slow, s300=fine), NOTHING))
    assert not is_bad(read_endpoint(LatencyBurn(FAST), PROMISE, windows(fine, s300=slow), NOTHING))


def test_a_quantile_of_few_requests_says_nothing() -> None:
    enough = least_requests(0.99)

    few = read_endpoint(
        LatencyOver(quantile=0.99), PROMISE, windows(Counted(enough - 1, 0, 1.0)), NOTHING
    )
    many = read_endpoint(
        LatencyOver(quantile=0.99), PROMISE, windows(Counted(enough, 0, 1.0)), NOTHING
    )

    assert enough == 200
    assert few == ConditionReading(value=1.0, threshold=0.2, is_bad=False)
    assert many == ConditionReading(value=1.0, threshold=0.2, is_bad=True)


def test_an_endpoint_without_requests_is_not_known() -> None:
    for condition in (ErrorBurn(FAST), LatencyBurn(SLOW), LatencyOver(quantile=0.95)):
        assert read_endpoint(condition, PROMISE, windows(Counted()), NOTHING) is None


def test_windows_are_as_long_as_the_endpoint_says() -> None:
    short = EndpointObjective(endpoint="fraud", availability=0.999, window_ratio=0.01)
    counted = windows(QUIET, s3=Counted(100, 50), s36=Counted(1000, 60))

    assert is_bad(read_endpoint(ErrorBurn(FAST), short, counted, NOTHING))


def test_queues_that_fill_are_told_before_they_are_full() -> None:
    promise = EndpointObjective(endpoint="fraud", queue_size=100)

    def filled(in_flight: int | None, ready: int | None) -> ConditionReading | None:
        facts = EndpointFacts(in_flight=in_flight, replicas_ready=ready)
        return read_endpoint(Fact.QUEUES_FILLED, promise, windows(QUIET), facts)

    assert is_bad(filled(160, 2))
    assert not is_bad(filled(159, 2))
    assert filled(None, 2) is None
    assert filled(160, 0) is None
    assert filled(160, None) is None


def test_an_endpoint_needs_a_replica_unless_none_is_wanted() -> None:
    def ready(count: int | None) -> ConditionReading | None:
        facts = EndpointFacts(replicas_ready=count)
        return read_endpoint(Fact.NO_REPLICA, PROMISE, windows(QUIET), facts)

    assert is_bad(ready(0))
    assert not is_bad(ready(1))
    assert ready(None) is None


def test_replicas_that_crash_are_told() -> None:
    crash = Fact.REPLICAS_CRASH

    assert is_bad(read_endpoint(crash, PROMISE, windows(QUIET), EndpointFacts(crashing=1)))
    assert not is_bad(read_endpoint(crash, PROMISE, windows(QUIET), NOTHING))


def test_drift_is_told_where_somebody_looks_for_it() -> None:
    def drift(count: int | None) -> ConditionReading | None:
        return read_endpoint(Fact.DRIFTED, PROMISE, windows(QUIET), EndpointFacts(drifted=count))

    assert is_bad(drift(1))
    assert not is_bad(drift(0))
    assert drift(None) is None


def test_rows_that_differ_are_bad_with_what_differs() -> None:
    def rows(ratio: float | None, detail: str = "") -> ConditionReading | None:
        facts = EndpointFacts(rows_differ=ratio, rows_detail=detail)
        return read_endpoint(Fact.ROWS_DIFFER, PROMISE, windows(QUIET), facts)

    found = rows(0.4, "version 1: output 'y'")
    assert is_bad(found)
    assert found is not None
    assert found.detail == "version 1: output 'y'"
    assert not is_bad(rows(0.0))
    assert rows(None) is None


def test_the_system_is_bad_without_a_gateway_or_with_a_certificate_that_ends() -> None:
    ends = Fact.CERTIFICATE_ENDS

    assert is_bad(read_system(Fact.GATEWAY_DOWN, SystemFacts(gateway_ready=False)))
    assert not is_bad(read_system(Fact.GATEWAY_DOWN, SystemFacts(gateway_ready=True)))
    assert read_system(Fact.GATEWAY_DOWN, SystemFacts()) is None
    assert is_bad(read_system(ends, SystemFacts(certificate_left_s=CERTIFICATE_LEFT_S - 1)))
    assert not is_bad(read_system(ends, SystemFacts(certificate_left_s=CERTIFICATE_LEFT_S + 1)))
    assert read_system(ends, SystemFacts()) is None
    assert read_endpoint(Fact.GATEWAY_DOWN, PROMISE, windows(QUIET), NOTHING) is None


def test_what_the_control_plane_looks_at_fits_into_a_day() -> None:
    here = [length for kind in ALERTS if kind.local for length in windows_of(kind.local)]
    there = [length for kind in ALERTS for length in windows_of(kind.condition)]

    assert max(here) == 86_400.0
    assert max(there) == 3 * 86_400.0
    assert windows_of(Fact.NOT_SCRAPED) == ()


@pytest.mark.parametrize("burn", [FAST, MEDIUM, SLOW, SLOW_ONE_DAY])
def test_each_pair_of_windows_is_the_workbooks(burn: object) -> None:
    shares = {FAST: 0.02, MEDIUM: 0.05, SLOW: 0.1, SLOW_ONE_DAY: 0.1}
    found = next(key for key in shares if key == burn)

    assert found.factor * found.long_s / (30 * 86_400.0) == pytest.approx(shares[found])
    assert found.long_s / found.short_s == 12


@pytest.mark.parametrize(
    ("availability", "outage_s"), [(0.9999, 6.0), (0.999, 52.0), (0.995, 260.0), (0.99, 519.0)]
)
def test_a_new_endpoint_that_is_down_pages_once_it_burnt_as_much_as_an_old_one(
    availability: float, outage_s: float
) -> None:
    promise = EndpointObjective(endpoint="fraud", availability=availability)

    def after(seconds: float, burn: BurnWindows) -> ConditionReading | None:
        failed = Counted(round(100 * seconds), round(100 * seconds))
        new = replace(failed, known_ratio=seconds / burn.long_s)
        return read_endpoint(
            ErrorBurn(burn), promise, windows(new, **{f"s{burn.short_s:g}": failed}), NOTHING
        )

    assert after(outage_s - 1, FAST) is None
    assert is_bad(after(outage_s, FAST))
    for slower in (MEDIUM, SLOW_ONE_DAY):
        assert after(outage_s, slower) is None


def test_a_new_endpoint_whose_long_window_is_well_is_well() -> None:
    fine = replace(QUIET, known_ratio=0.01)
    burning = windows(fine, s300=Counted(100, 20, 0.3))

    for condition in (ErrorBurn(FAST), LatencyBurn(FAST)):
        reading = read_endpoint(condition, PROMISE, burning, NOTHING)
        assert reading is not None
        assert not reading.is_bad


def test_a_new_endpoint_that_is_slow_pages_once_enough_of_the_window_is_known_to_be() -> None:
    def after(known_ratio: float) -> ConditionReading | None:
        slow = Counted(10_000, 0, 0.3, known_ratio)
        return read_endpoint(LatencyBurn(FAST), PROMISE, windows(slow), NOTHING)

    assert after(0.0) is None
    assert after(0.14) is None
    assert is_bad(after(0.15))
    assert is_bad(after(1.0))


@given(
    requests=st.integers(1, 100_000),
    failed=st.integers(0, 100_000),
    known_ratio=st.floats(0.001, 1.0),
    burn=st.sampled_from([FAST, MEDIUM, SLOW, SLOW_ONE_DAY]),
)
def test_what_is_not_known_of_a_window_never_pages(
    requests: int, failed: int, known_ratio: float, burn: BurnWindows
) -> None:
    """An alert of a part fires exactly where it would if the rest had been without errors."""
    failed = min(failed, requests)
    part = Counted(requests, failed, known_ratio=known_ratio)
    short = {f"s{burn.short_s:g}": Counted(100, 100)}

    reading = read_endpoint(ErrorBurn(burn), PROMISE, windows(part, **short), NOTHING)

    diluted = failed / (requests / known_ratio)
    assert is_bad(reading) == (failed >= 5 and diluted > burn.factor * 0.001) or (
        diluted == pytest.approx(burn.factor * 0.001)
    )


@given(
    requests=st.integers(0, 10_000),
    failed=st.integers(0, 10_000),
    more=st.integers(0, 100),
    availability=st.floats(0.5, 0.9999),
)
def test_more_errors_never_end_an_alert(
    requests: int, failed: int, more: int, availability: float
) -> None:
    promise = EndpointObjective(endpoint="fraud", availability=availability)
    failed = min(failed, requests)
    worse = min(failed + more, requests)

    before = read_endpoint(ErrorBurn(FAST), promise, windows(Counted(requests, failed)), NOTHING)
    after = read_endpoint(ErrorBurn(FAST), promise, windows(Counted(requests, worse)), NOTHING)

    assert is_bad(after) or not is_bad(before)


def test_promises_are_read_from_the_spec() -> None:
    document = {
        "endpoints": [
            {"name": "a", "model": "a"},
            {
                "name": "b",
                "model": "b",
                "slo": {"latency_s": 0.1, "availability": 0.999, "alert_window_ratio": 0.5},
                "batching": {"max_queue_size": 7},
            },
        ]
    }

    plain, full = objectives_of(document)

    assert plain == EndpointObjective(endpoint="a")
    assert plain.error_budget is None
    assert full.error_budget == 0.001
    assert (full.latency_s, full.window_ratio, full.queue_size) == (0.1, 0.5, 7)
    assert objectives_of({}) == ()
