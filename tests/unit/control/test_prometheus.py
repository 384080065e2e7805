"""What was longer ago is read from a Prometheus, and nothing of its trouble reaches callers."""

import json

import httpx
import pytest

from headrace.control.telemetry.prometheus import QUANTITIES, PrometheusHistory, queries
from headrace.core import FailedPreconditionError

pytestmark = pytest.mark.anyio


def answering(*values: list[object], status: str = "success") -> httpx.MockTransport:
    """A Prometheus that answers every query with one series of these values."""
    data = {"resultType": "matrix", "result": [{"metric": {}, "values": list(values)}]}
    return httpx.MockTransport(
        lambda _: httpx.Response(200, json={"status": status, "data": data, "error": "no"})
    )


async def test_values_come_by_the_number_of_their_step() -> None:
    transport = answering([1000, "1.5"], [1060, "NaN"], [1060, "x"], [1120.2, "2.5"])
    prometheus = PrometheusHistory(url="http://p:9090/", transport=transport)
    found = await prometheus.series("m", "", first_end=1000, last_end=1120, step_s=60)

    assert set(found) == set(QUANTITIES)
    assert dict(found["p99_s"]) == {0: 1.5, 2: 2.5}


async def test_it_is_asked_for_the_span_and_the_endpoint() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"status": "success", "data": {"result": []}})

    prometheus = PrometheusHistory(
        url="https://u:secret@p/prefix",
        matchers='namespace="a"',
        transport=httpx.MockTransport(answer),
    )
    found = await prometheus.series("m", "3~baseline", first_end=60, last_end=600, step_s=60)
    query = dict(asked[0].url.params)

    assert len(asked) == len(QUANTITIES)
    assert asked[0].url.path == "/prefix/api/v1/query_range"
    assert asked[0].headers["authorization"].startswith("Basic ")
    assert (query["start"], query["end"], query["step"]) == ("60.000", "600.000", "60")
    assert query["query"] == (
        'sum(rate(headrace_endpoint_requests_total{namespace="a",endpoint="m",version="3"}[120s]))'
    )
    assert all('{namespace="a",' in request.url.params["query"] for request in asked)
    assert all(not known for known in found.values())


def test_errors_and_quantiles_are_asked_for_over_a_whole_step() -> None:
    asked = queries("m", "", 1800)

    assert 'outcome="error"' in asked["errors_per_s"]
    assert 'outcome="rejected"' in asked["rejections_per_s"]
    assert asked["p99_s"] == (
        "histogram_quantile(0.99,sum by(le)(rate("
        'headrace_endpoint_latency_seconds_bucket{endpoint="m"}[1800s])))'
    )


def test_what_replicas_say_is_asked_for_as_means_over_a_step() -> None:
    asked = queries("m", "3", 600)

    assert asked["batch_rows"] == (
        'sum(rate(headrace_batch_rows_sum{model="m",version="3"}[600s]))'
        '/sum(rate(headrace_batch_rows_count{model="m",version="3"}[600s]))'
    )
    assert asked["replicas_ready"] == (
        'avg_over_time(sum(headrace_replicas{endpoint="m",version="3",state="ready"})[600s:60s])'
    )


def _down(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.mark.parametrize(
    "transport",
    [
        httpx.MockTransport(_down),
        httpx.MockTransport(lambda _: httpx.Response(502, text="<html>")),
        answering(status="error"),
        httpx.MockTransport(lambda _: httpx.Response(200, content=b"[" * (9 << 20))),
    ],
    ids=["down", "no JSON", "an error", "too large"],
)
async def test_its_trouble_leaves_points_out(transport: httpx.MockTransport) -> None:
    prometheus = PrometheusHistory(url="http://p", transport=transport)

    assert await prometheus.series("m", "", first_end=60, last_end=600, step_s=60) == {}


@pytest.mark.parametrize("url", ["p:9090", "ftp://p", "http://", "/var/prometheus"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(FailedPreconditionError, match="--prometheus-url"):
        PrometheusHistory(url=url)


def test_a_refusal_does_not_tell_a_password() -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        PrometheusHistory(url="ftp://u:secret@p")

    assert "secret" not in json.dumps(str(refused.value))
