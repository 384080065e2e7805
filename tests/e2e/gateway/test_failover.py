"""A replica dies, refuses or fails, or the routes change, while requests keep coming."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.gateway.lab import Lab, client, endpoint, split

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


async def _pour(
    http: httpx.AsyncClient, path: str, *, until: asyncio.Event, callers: int = 8
) -> Counter[int]:
    """Status codes of a steady stream of requests."""
    codes: Counter[int] = Counter()

    async def one() -> None:
        while not until.is_set():
            codes[(await http.post(path, content=b"{}")).status_code] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(one())
    return codes


async def _reached(count: Callable[[], int], goal: int) -> None:
    async with asyncio.timeout(30):
        while True:
            if count() >= goal:
                return
            await asyncio.sleep(0.01)


@pytest.mark.long
async def test_changing_the_routes_loses_no_request(lab: Lab) -> None:
    one, two, three = lab.replica("1"), lab.replica("2"), lab.replica("3")
    gateway = await lab.start(endpoint("m", one))
    stop = asyncio.Event()
    routes = itertools.cycle(
        [
            [split("m", ("1", 50, one), ("2", 50, two))],
            [endpoint("m", one, two)],
            [endpoint("m", three), endpoint("other", one)],
            [endpoint("m", two, version="2"), endpoint("other", one)],
        ]
    )

    async with client(gateway) as http:
        load = asyncio.create_task(_pour(http, "/v2/models/m/infer", until=stop))
        for endpoints in itertools.islice(routes, 40):
            await lab.publish(gateway, *endpoints)
            await asyncio.sleep(0.02)
        stop.set()
        codes = await load

    assert set(codes) == {200}
    assert codes[200] > 100


async def test_killing_one_of_two_replicas_costs_at_most_its_requests_in_flight(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("m", one, two))
    stop, callers = asyncio.Event(), 8

    async with client(gateway) as http:
        load = asyncio.create_task(
            _pour(http, "/v2/models/m/infer?sleep_s=0.005", until=stop, callers=callers)
        )
        await asyncio.sleep(0.5)
        one.kill()
        await asyncio.sleep(1.5)
        stop.set()
        codes = await load

    assert set(codes) <= {200, 503}
    assert codes[503] <= callers
    assert codes[200] > 100


async def test_a_request_that_no_replica_began_is_given_to_another(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("m", one, two))

    async with client(gateway) as http:
        answers = [
            await http.post("/v2/models/m/infer", headers={"x-test-busy": "1"}, content=b"{}")
            for _ in range(30)
        ]

    assert {answer.json()["replica"] for answer in answers} == {"2"}


async def test_a_replica_that_fails_on_requests_is_neither_retried_nor_ejected(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with client(gateway) as http:
        for status in (500, 502, 503, 504, 429):
            for _ in range(10):
                answer = await http.post(f"/v2/models/m/infer?status={status}", content=b"{}")
                assert answer.status_code == status
        healthy = await http.post("/v2/models/m/infer", content=b"{}")
        stats = await gateway.stats()

    assert healthy.status_code == 200
    assert "envoy_cluster_outlier_detection_ejections_active 1" not in stats
    retries = [line for line in stats.splitlines() if "upstream_rq_retry{" in line]
    assert all(line.endswith(" 0") for line in retries)


async def test_a_dead_replica_alone_is_unavailable_in_json_and_returns(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start(endpoint("m", one))

    async with client(gateway) as http:
        one.kill()
        down = await http.post("/v2/models/m/infer", content=b"{}")
        again = lab.replica("again")
        await lab.publish(gateway, endpoint("m", again))
        up = await http.post("/v2/models/m/infer", content=b"{}")

    assert (down.status_code, down.headers["retry-after"]) == (503, "1")
    assert down.json()["error"]
    assert up.json()["replica"] == "again"
