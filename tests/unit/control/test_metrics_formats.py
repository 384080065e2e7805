"""The same metrics in both formats that scrapers read."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from headrace.control.api.system import prefers_openmetrics
from headrace.observe.metrics import MetricSource, merge, openmetrics, text

EXEMPLAR = ' # {trace_id="4bf92f3577b34da6",request_id="a-b"} 0.07 1700000000.5'
SOURCE = MetricSource(
    text=(
        "# HELP requests_total Requests, all of \\\\ them.\n"
        "# TYPE requests_total counter\n"
        'requests_total{model="m"} 3\n'
        "# TYPE nv_inference_count counter\n"
        "nv_inference_count 7 1700000000000\n"
        "# TYPE up_or_not gauge\n"
        f"up_or_not 1{EXEMPLAR}\n"
        "# TYPE envoy_rq counter\nenvoy_rq 1\n# TYPE envoy_rq_total counter\nenvoy_rq_total 1\n"
        "# TYPE envoy_thing untyped\n"
        "envoy_thing NaN\n"
        "# HELP wait_seconds Wait.\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{model="m",le="0.05"} 2\n'
        f'wait_seconds_bucket{{model="m",le="0.1"}} 3{EXEMPLAR}\n'
        'wait_seconds_bucket{model="m",le="+Inf"} 4\n'
        'wait_seconds_sum{model="m"} 0.75\n'
        'wait_seconds_count{model="m"} 4\n'
    )
)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;"
    "version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_2_NATIVE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
    "encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml", False),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.1", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=0.0.1,text/plain;q=0.1", False),
        ("application/vnd.google.protobuf", False),
        ("application/openmetrics-text;q=nan", False),
        (PROMETHEUS_2, True),
        (PROMETHEUS_2_NATIVE, True),
    ],
)
def test_a_scraper_gets_what_it_likes_best(*, accept: str, is_open: bool) -> None:
    assert prefers_openmetrics(accept) is is_open


@given(st.text())
def test_no_accept_header_is_an_error(accept: str) -> None:
    assert not prefers_openmetrics(accept) or "openmetrics" in accept.lower()


def test_openmetrics_can_be_read_and_has_exemplars() -> None:
    content = openmetrics(merge([], [SOURCE])).decode()

    found = {family.name: family for family in _read(content)}
    assert content.endswith("# EOF\n")
    assert {name: family.type for name, family in found.items()} == {
        "requests": "counter",
        "nv_inference_count": "unknown",
        "up_or_not": "gauge",
        "envoy_rq": "unknown",
        "envoy_rq_total": "unknown",
        "envoy_thing": "unknown",
        "wait_seconds": "histogram",
    }
    assert found["requests"].documentation == "Requests, all of \\ them."
    (exemplar,) = [s.exemplar for s in found["wait_seconds"].samples if s.exemplar]
    assert exemplar.labels == {"trace_id": "4bf92f3577b34da6", "request_id": "a-b"}
    assert exemplar.value == 0.07


def test_the_text_format_has_no_exemplars() -> None:
    assert b" # {" not in text(merge([], [SOURCE]).values())


def _read(content: str) -> Iterator[Metric]:
    return text_string_to_metric_families(content)  # type: ignore[no-untyped-call,no-any-return]


def test_nothing_can_be_told_in_both_formats() -> None:
    assert text([]) == b""
    assert openmetrics({}) == b"# EOF\n"
