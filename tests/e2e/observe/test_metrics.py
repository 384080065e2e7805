"""What a real Prometheus finds at a running system's metrics port."""

import contextlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.e2e.control.system import ROW, System
from tests.e2e.observe.prometheus import PrometheusServer, Tools, running_prometheus

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GOOD, BAD = 40, 7
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
THEIRS = re.compile(r"(?:nv_|envoy_)")
"""Names that others chose: Triton's and Envoy's, which dashboards know."""


def _scrape(system: System, accept: str = "", query: str = "") -> str:
    url = f"{system.where().metrics_url}{query}"
    request = urllib.request.Request(url, headers={"accept": accept})  # noqa: S310  # loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # as above
        return str(answer.read().decode())


def _series(exposition: str) -> set[str]:
    lines = exposition.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module", autouse=True)
def requests(system: System) -> None:
    for _ in range(GOOD):
        assert system.infer("fraud")[0] == 200
    for _ in range(BAD):
        assert system.infer("fraud", {"inputs": []})[0] == 400


@pytest.fixture(scope="module")
def prometheus(
    system: System,
    tools: Tools,  # noqa: ARG001  # or there is none, and this is skipped
) -> Iterator[PrometheusServer]:
    url = system.where().metrics_url
    # A scrape has the interval's time, and a busy machine may need it.
    with running_prometheus(url, interval_s=2.0) as server:
        server.wait_scraped(times=1, timeout_s=60)
        yield server


def test_prometheus_counts_what_the_callers_counted(prometheus: PrometheusServer) -> None:
    found = prometheus.query('headrace_endpoint_requests_total{endpoint="fraud"}')

    assert {series.labels["outcome"]: series.value for series in found} == {
        "ok": GOOD,
        "error": 0,
        "rejected": BAD,
        "abandoned": 0,
    }


def test_prometheus_finds_the_quantiles_that_the_gateway_measured(
    prometheus: PrometheusServer, system: System
) -> None:
    name = "headrace_endpoint_latency_seconds_bucket"
    p99 = prometheus.query(f"histogram_quantile(0.99, sum({name}) by (le))")

    # The text format's own buckets are the bound: what is asked twice is answered alike.
    text = _scrape(system)
    pattern = r'headrace_endpoint_latency_seconds_bucket\{endpoint="fraud",.*le="(.*)"\} (\d+)'
    below = [(float(bound), int(count)) for bound, count in re.findall(pattern, text)]
    at = next(place for place, (_, count) in enumerate(below) if count >= 0.99 * below[-1][1])
    lower = below[at - 1][0] if at else 0.0
    assert lower * 0.95 <= p99[0].value <= below[at][0] * 1.05


@pytest.mark.parametrize(
    "expression",
    [
        'headrace_endpoint_requests_total{endpoint="idle", outcome="ok"} == 0',
        'headrace_replicas{endpoint="fraud", state="ready"} == 1',
        'headrace_replicas{endpoint="fraud", state="desired"} == 1',
        'headrace_process_memory_bytes{process="gateway"} > 1e6',
        'headrace_process_cpu_seconds_total{process="control"} > 0',
        "headrace_requests_in_flight == 0",
        'nv_inference_request_success{model="fraud"} >= 40',
        "envoy_server_live == 1",
    ],
)
def test_prometheus_knows_the_rest_of_the_system(
    prometheus: PrometheusServer, expression: str
) -> None:
    assert prometheus.query(expression)


def test_a_scrape_is_brief_unless_it_asks_for_everything(system: System) -> None:
    brief, full = _series(_scrape(system)), _series(_scrape(system, query="?full=true"))

    of_fraud = re.compile(r'[="](?:fraud|fraud~\d+)"')
    assert brief <= full
    assert sum(of_fraud.search(line) is not None for line in brief) < 300
    assert sum(of_fraud.search(line) is not None for line in full) > 800
    assert any(line.startswith("request_predict_seconds_bucket") for line in full)
    assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="fraud~1"}' in brief
    assert not any("envoy_cluster_internal" in line for line in brief)


def test_openmetrics_names_a_request_for_each_bucket(system: System) -> None:
    trace, name = "4bf92f3577b34da6a3ce929d0e0e4736", "order-4711"
    url = f"{system.where().http_url}/v2/models/idle/infer"
    for identity in (
        {"x-request-id": 'a"} 1\\ # '},
        {"x-request-id": name},
        {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
    ):
        headers = {"content-type": "application/json", **identity}
        request = urllib.request.Request(url, json.dumps(ROW).encode(), headers)  # noqa: S310  # loopback
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # as above
            assert answer.status == 200
        time.sleep(1.1)  # an example is renewed once a second

    text = _scrape(system, OPENMETRICS)
    found = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in found}
    buckets = [
        each
        for each in families["headrace_request_seconds"].samples
        if each.name.endswith("_bucket") and each.labels["model"] == "idle"
    ]
    examples = [each.exemplar for each in buckets if each.exemplar]
    assert max(each.value for each in buckets) == 4  # the first is the control plane's
    assert {value for each in examples for value in each.labels.values()} & {trace, name}
    assert all(each.value > 0 and each.timestamp for each in examples)


def test_promtool_complains_of_nothing_but_names_that_others_chose(
    system: System, tools: Tools
) -> None:
    complaints = tools.check_metrics(_scrape(system)).splitlines()

    assert [line for line in complaints if not THEIRS.match(line)] == []
    ours = _scrape(system, query="?full=true&names=headrace_&names=request_")
    assert tools.check_metrics(ours) == ""


def test_callers_add_no_series_whatever_they_send(system: System) -> None:
    url = system.where().http_url
    paths = ("/v2/models/{}/infer", "/v1/models/{}:predict", "/{}", "/v2/models/fraud/{}")

    def ask(word: str) -> None:
        for path in paths:
            headers = {"content-type": "application/json", f"x-{word}": word, "user-agent": word}
            headers |= {"x-headrace-split": word, "x-model": word, "traceparent": word}
            target = url + path.format(word)
            request = urllib.request.Request(target, json.dumps({word: word}).encode(), headers)  # noqa: S310  # loopback
            with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request):  # noqa: S310  # as above
                pass

    def added(round_: int) -> set[str]:
        """The series that twenty-five words nobody has sent before brought."""
        before = _series(_scrape(system))
        for number in range(25):
            ask(f"w{round_}x{number * 7919}")
        return _series(_scrape(system)) - before

    # Envoy shows what it counts from its first time on: a connection reset, a flush that was late.
    # Such there are only so many, and a series by word would come in every round.
    rounds = [added(0)]
    while rounds[-1] and len(rounds) < 6:
        rounds.append(added(len(rounds)))

    assert rounds[-1] == set()
    assert not [series for found in rounds for series in found if re.search(r"w\dx\d", series)]
