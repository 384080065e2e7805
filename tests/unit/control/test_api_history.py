"""The last day and all endpoints at a glance, over the management API."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace.control.model.desired import DesiredState
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.telemetry.prometheus import PrometheusHistory
from headrace.core import EndpointName
from headrace.monitor import LoadReading, LoadTotals, RequestHistory, RequestWindow
from tests.unit.control.api_client import client_of, document
from tests.unit.monitor.counted import Counted

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Three endpoints, of which two got requests over the last two minutes."""
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    async with client_of(plane) as client:
        await client.post("/apply", json=document(model, "fraud", "churn", "Front"))
        _fill(plane, plane.telemetry.history, fraud=10, churn=20)
        yield client


def _fill(plane: ControlPlane, history: RequestHistory, **per_s: int) -> None:
    now = plane.clock.now()
    totals = dict.fromkeys(per_s, Counted())
    history.advance(now - 121)
    for second in range(-120, 1):
        history.advance(now + second)
        for name, count in per_s.items():
            totals[name] = totals[name].after([0.01] * count, errors=count // 20)
            history.add(now + second, name, "1", totals[name])


async def test_a_series_has_rates_and_quantiles(api: httpx.AsyncClient) -> None:
    found = (await api.get("/history?endpoint=churn&since_s=60&points=6")).json()
    points = found["points"]

    assert (found["endpoint"], found["version"], found["step_s"]) == ("churn", "", 10)
    assert len(points) in {6, 7}
    assert points[2]["requests_per_s"] == pytest.approx(20, rel=0.11)
    assert points[2]["errors_per_s"] == pytest.approx(1, rel=0.11)
    assert points[2]["rejections_per_s"] == 0
    assert points[2]["p50_s"] == pytest.approx(0.0105, rel=0.05)
    assert points[1]["at"] - points[0]["at"] == 10


async def test_a_series_of_a_language_model_has_tokens_and_times_to_the_first(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    _fill(plane, plane.telemetry.tokens.history, churn=30)
    url = "/history?since_s=60&points=6&endpoint"
    points = (await api.get(f"{url}=churn")).json()["points"]
    other = (await api.get(f"{url}=fraud")).json()["points"]

    assert points[2]["output_tokens_per_s"] == pytest.approx(30, rel=0.11)
    assert points[2]["first_token_p50_s"] == pytest.approx(0.0105, rel=0.05)
    assert points[2]["requests_per_s"] == pytest.approx(20, rel=0.11)
    assert {point["output_tokens_per_s"] for point in other} == {None}


async def test_before_anything_was_counted_a_series_is_empty(api: httpx.AsyncClient) -> None:
    points = (await api.get("/history?endpoint=churn&since_s=3600&points=60")).json()["points"]

    assert points[0] == {
        "at": points[0]["at"],
        "requests_per_s": None,
        "errors_per_s": None,
        "rejections_per_s": None,
        "p50_s": None,
        "p95_s": None,
        "p99_s": None,
        "batch_rows": None,
        "queue_s": None,
        "in_flight": None,
        "replicas_ready": None,
        "first_token_p50_s": None,
        "first_token_p95_s": None,
        "output_tokens_per_s": None,
    }


async def test_an_idle_endpoint_has_rates_of_zero(api: httpx.AsyncClient) -> None:
    points = (await api.get("/history?endpoint=Front&since_s=60&points=6")).json()["points"]

    assert {point["requests_per_s"] for point in points} == {0}
    assert {point["p99_s"] for point in points} == {None}


async def test_a_series_has_what_replicas_said_of_themselves(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    now = plane.clock.now()
    plane.telemetry.load_history.advance(now - 121)
    for second in range(-120, 1):
        count = second + 121
        totals = LoadTotals(
            epoch="",
            age_s=float(count),
            batches=2 * count,
            rows=9 * count,
            waited=9 * count,
            queue_s=0.018 * count,
            in_flight_s=1.5 * count,
        )
        reading = LoadReading(ready=3, totals={"a": totals}, process_names={"a"})
        plane.telemetry.load_history.add(now + second, "churn", "1", reading)
    url = "/history?since_s=60&points=6&endpoint"
    points = (await api.get(f"{url}=churn&version=1")).json()["points"]
    other = (await api.get(f"{url}=fraud")).json()["points"]

    assert points[2]["batch_rows"] == 4.5
    assert points[2]["queue_s"] == pytest.approx(0.002)
    assert points[2]["in_flight"] == pytest.approx(1.5)
    assert points[2]["replicas_ready"] == pytest.approx(3)
    assert {(one["batch_rows"], one["replicas_ready"]) for one in other} == {(None, None)}


async def test_a_series_of_one_version(api: httpx.AsyncClient) -> None:
    url = "/history?endpoint=fraud&since_s=60&points=6&version"
    one = (await api.get(f"{url}=1")).json()["points"]
    other = (await api.get(f"{url}=2")).json()["points"]

    assert one[2]["requests_per_s"] > 5
    assert other[2]["requests_per_s"] == 0


async def test_an_unknown_endpoint_is_not_found(api: httpx.AsyncClient) -> None:
    assert (await api.get("/history?endpoint=nobody")).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "/history?endpoint=-",
        "/history?endpoint=fraud&version=x",
        "/history?endpoint=fraud&since_s=0",
        "/history?endpoint=fraud&since_s=100000",
        "/history?endpoint=fraud&points=0",
        "/history?endpoint=fraud&points=100000",
        "/overview?page=0",
        "/overview?size=0",
        "/overview?size=501",
        "/overview?sort=weight",
        "/overview?sort=--name",
    ],
)
async def test_what_makes_no_sense_is_refused(api: httpx.AsyncClient, url: str) -> None:
    assert (await api.get(url)).status_code == 400


async def test_the_overview_has_a_row_per_endpoint(api: httpx.AsyncClient) -> None:
    found = (await api.get("/overview")).json()
    rows = {row["name"]: row for row in found["endpoints"]}

    assert (found["total"], found["page"], found["size"]) == (3, 1, 50)
    assert list(rows) == ["Front", "churn", "fraud"]
    assert rows["churn"]["requests_per_s"] == 20
    assert rows["churn"]["error_ratio"] == 0.05
    assert rows["churn"]["state"] == "failing"
    assert rows["churn"]["versions"] == ["1"]
    assert (rows["churn"]["replicas_ready"], rows["churn"]["replicas_desired"]) == (0, 1)
    assert rows["Front"]["p99_s"] is None
    assert rows["Front"]["rollout"] is None


async def test_the_overview_is_searched_sorted_and_paged(api: httpx.AsyncClient) -> None:
    async def names(query: str) -> list[str]:
        rows = (await api.get(f"/overview?{query}")).json()["endpoints"]
        return [row["name"] for row in rows]

    assert await names("search=FR") == ["Front", "fraud"]
    assert await names("sort=-name") == ["fraud", "churn", "Front"]
    assert await names("sort=requests_per_s") == ["churn", "fraud", "Front"]
    assert await names("sort=requests_per_s&size=2&page=2") == ["Front"]
    assert await names("size=2&page=2") == ["fraud"]
    assert await names("page=9") == []


async def test_a_viewer_of_one_endpoint_sees_no_other(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    async with client_of(plane, "viewer:fraud") as viewer:
        overview = (await viewer.get("/overview")).json()
        own = await viewer.get("/history?endpoint=fraud")
        other = await viewer.get("/history?endpoint=churn")
        nobody = await viewer.get("/history?endpoint=nobody")

    assert [row["name"] for row in overview["endpoints"]] == ["fraud"]
    assert overview["total"] == 1
    assert (own.status_code, other.status_code, nobody.status_code) == (200, 403, 403)
    assert api is not viewer


@pytest.mark.slow
async def test_the_first_page_of_two_thousand_endpoints_asks_of_these_only(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    [endpoint, *_] = plane.target_state.effective.endpoints
    many = tuple(
        msgspec.structs.replace(endpoint, name=EndpointName(f"e{number:04}"))
        for number in range(2000)
    )
    plane.reconciling.reconciler.desired = DesiredState(generation=9, endpoints=many)
    history = plane.telemetry.recorder.history = CountingHistory()
    found = (await api.get("/overview?search=e1")).json()

    assert (found["total"], len(found["endpoints"])) == (1000, 50)
    assert history.asked == [f"e{number}" for number in range(1000, 1050)]


@dataclass(slots=True)
class CountingHistory(RequestHistory):
    """Remembers whose windows were asked for."""

    asked: list[str] = field(default_factory=list)

    def window(
        self, endpoint: str, *, until: float, seconds: float, version: str = ""
    ) -> RequestWindow:
        self.asked.append(endpoint)
        return RequestHistory.window(self, endpoint, until=until, seconds=seconds, version=version)


def series(request: httpx.Request) -> httpx.Response:
    start, step = (float(request.url.params[name]) for name in ("start", "step"))
    values = [[start, "7"], [start + step, "8"]]
    return httpx.Response(
        200, json={"status": "success", "data": {"result": [{"metric": {}, "values": values}]}}
    )


@pytest.mark.parametrize(
    "prometheus", [PrometheusHistory(url="http://p", transport=httpx.MockTransport(series))]
)
async def test_before_what_is_kept_prometheus_is_asked(api: httpx.AsyncClient) -> None:
    points = (await api.get("/history?endpoint=churn&since_s=600&points=20")).json()["points"]

    assert [point["requests_per_s"] for point in points[:3]] == [7, 8, None]
    assert points[1]["p99_s"] == 8
    assert points[-2]["requests_per_s"] == pytest.approx(20, rel=0.11)


async def test_a_week_is_not_known_without_a_prometheus(api: httpx.AsyncClient) -> None:
    without = await api.get("/history?endpoint=churn&since_s=604800&points=168")

    assert without.status_code == 400
    assert "--prometheus-url" in without.json()["detail"]


@pytest.mark.parametrize(
    "prometheus",
    [
        PrometheusHistory(
            url="http://p", transport=httpx.MockTransport(lambda _: httpx.Response(500))
        )
    ],
)
async def test_a_week_is_known_with_a_prometheus(api: httpx.AsyncClient) -> None:
    found = await api.get("/history?endpoint=churn&since_s=604800&points=168")

    assert found.status_code == 200
    assert found.json()["step_s"] == 3600
    assert len(found.json()["points"]) in {168, 169}


async def test_all_endpoints_together_are_the_sum_of_what_the_caller_may_see(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    both = (await api.get("/history?since_s=60&points=6")).json()
    again = (await api.get("/history?since_s=60&points=6")).json()
    async with client_of(plane, "viewer:churn") as viewer:
        own = (await viewer.get("/history?since_s=60&points=6")).json()
    version = await api.get("/history?version=1")

    assert (both["endpoint"], both["step_s"]) == ("", 10)
    assert again == both
    assert both["points"][2]["requests_per_s"] == pytest.approx(30, rel=0.11)
    assert both["points"][2]["errors_per_s"] == pytest.approx(1, rel=0.11)
    assert both["points"][2]["p99_s"] == pytest.approx(0.0105, rel=0.05)
    assert own["points"][2]["requests_per_s"] == pytest.approx(20, rel=0.11)
    assert version.status_code == 400
