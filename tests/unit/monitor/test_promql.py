"""How conditions and lengths are written for Prometheus."""

import pytest

from headrace.monitor import promql
from headrace.monitor.prometheus import alerting_rules, recording_rules, window_ratios
from headrace.monitor.slo import (
    FAST,
    SLOW,
    EndpointObjective,
    ErrorBurn,
    Fact,
    LatencyBurn,
    StreamPromise,
)
from tests.unit.monitor.told import PROMISE

QUICK = EndpointObjective(endpoint="quick", latency_s=0.1, window_ratio=0.01)
PLAIN = EndpointObjective(endpoint="plain")
PAY = StreamPromise(stream="pay", lag_s=30.0, dead_letters=2)
SILENT = StreamPromise(stream="silent", lag_s=None, dead_letters=None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (300.0, "5m"),
        (3600.0, "1h"),
        (3 * 86_400.0, "3d"),
        (216.0, "216s"),
        (1.2, "1200ms"),
        (0.0001, "1ms"),
    ],
)
def test_a_duration_is_whole_in_its_unit(seconds: float, text: str) -> None:
    assert promql.duration(seconds) == text


def test_a_burn_rate_asks_both_windows_and_for_enough_errors() -> None:
    text = promql.expression(ErrorBurn(FAST))

    assert "headrace:error_ratio:rate1h > on (endpoint) (14.4 * " in text
    assert "headrace:error_ratio:rate5m > on (endpoint) (14.4 * " in text
    assert text.endswith("headrace:errors:increase1h >= 5")


def test_names_of_quantiles_are_names_of_metrics() -> None:
    assert promql.latency_quantile(0.856, 300.0) == "headrace:latency_seconds:q85_6_rate5m"
    assert "q99_rate3d" in promql.expression(LatencyBurn(SLOW))


def test_what_no_window_is_asked_for_is_the_same_for_every_length() -> None:
    assert promql.expression(Fact.NO_REPLICA, 0.5) == promql.expression(Fact.NO_REPLICA)


def test_every_promise_is_a_series_of_its_own() -> None:
    rules = recording_rules([PROMISE, PLAIN])["groups"][0]["rules"]

    found = {(rule["record"], rule["labels"]["endpoint"]): rule["expr"] for rule in rules}
    assert found[promql.BUDGET, "fraud"] == "vector(0.001)"
    assert found[promql.PROMISED, "fraud"] == "vector(0.2)"
    assert (promql.BUDGET, "plain") not in found
    assert found[promql.QUEUE_SIZE, "plain"] == "vector(1024)"


def test_each_length_of_window_has_rules_of_its_own() -> None:
    groups = alerting_rules([PROMISE, QUICK])["groups"]

    assert window_ratios([QUICK]) == [1.0, 0.01]
    assert [group["name"] for group in groups] == [
        "headrace-slo-1",
        "headrace-slo-0.01",
        "headrace-system",
    ]
    usual, quick = groups[0]["rules"], groups[1]["rules"]
    assert [rule["alert"] for rule in usual] == [rule["alert"] for rule in quick]
    assert {rule["labels"].get("windows") for rule in quick} == {"0.01"}
    assert {rule["for"] for rule in quick if "for" in rule} == {"1200ms"}


def test_what_streams_may_do_is_a_series_of_its_own_where_somebody_wants_to_hear_of_it() -> None:
    rules = recording_rules([], [PAY, SILENT])["groups"][0]["rules"]

    assert {(rule["record"], rule["labels"]["stream"]): rule["expr"] for rule in rules} == {
        (promql.STREAM_LAG, "pay"): "vector(30)",
        (promql.STREAM_LETTERS, "pay"): "vector(2)",
    }


def test_streams_that_are_paused_are_left_out() -> None:
    for condition in (Fact.STREAM_LAGS, Fact.STREAM_DOWN):
        assert promql.expression(condition).endswith(
            "unless on (stream) (headrace_stream_paused > 0)"
        )


def test_rules_of_streams_name_the_stream() -> None:
    [system] = [g for g in alerting_rules([])["groups"] if g["name"] == "headrace-system"]
    [down] = [rule for rule in system["rules"] if rule["alert"] == "HeadraceStreamDown"]

    assert "{{ $labels.stream }}" in down["annotations"]["summary"]
    assert "{{ $labels.stream }}" in down["annotations"]["action"]
