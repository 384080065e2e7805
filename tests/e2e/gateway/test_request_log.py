"""Which requests Envoy logs, and what callers can do to its lines."""

import json
from dataclasses import replace
from typing import Any

import pytest

from headrace.core.spec.observe import EndpointLogSpec, LogMode, RequestLogSpec
from headrace.gateway import EndpointRoute, EnvoyGateway
from tests.e2e.gateway.lab import Lab, client, endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]
NEVER = RequestLogSpec(mode=LogMode.SAMPLED, sample_ratio=0.0, slow_s=0.15)
OFF, ALL = EndpointLogSpec(mode=LogMode.OFF), EndpointLogSpec(mode=LogMode.ALL)


async def _lines(gateway: EnvoyGateway) -> list[dict[str, Any]]:
    await gateway.stop(5)
    return [json.loads(line) for line in gateway.access_log_path.read_text().splitlines()]


async def test_errors_and_slow_requests_are_logged_always_and_others_by_chance(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")), request_log=NEVER)

    async with client(gateway) as http:
        for query in ("", "?status=500", "?sleep_s=0.2", ""):
            await http.get(f"/v2/models/m{query}")
        await http.get("/v2/models/nobody")
    lines = await _lines(gateway)

    assert [line["code"] for line in lines] == [500, 200, 404]
    assert lines[0]["endpoint"] == "m"
    assert lines[1]["replica_us"] >= 200_000


async def test_an_endpoint_may_have_all_its_requests_logged_or_none(lab: Lab) -> None:
    replica = lab.replica("1")
    quiet, loud, slow = (
        logged(endpoint(name, replica), log)
        for name, log in (("quiet", OFF), ("loud", ALL), ("slow", EndpointLogSpec(slow_s=10)))
    )
    gateway = await lab.start(quiet, loud, slow, request_log=NEVER)

    async with client(gateway) as http:
        await http.get("/v2/models/quiet?status=500")
        await http.get("/v2/models/loud")
        await http.get("/v2/models/slow?sleep_s=0.2")
        await http.get("/v2/models/slow?status=500")
    lines = await _lines(gateway)

    assert [(line["endpoint"], line["code"]) for line in lines] == [("loud", 200), ("slow", 500)]


async def test_an_endpoints_own_idea_of_slow_counts(lab: Lab) -> None:
    strict = logged(endpoint("m", lab.replica("1")), EndpointLogSpec(slow_s=0.05))
    gateway = await lab.start(strict, request_log=NEVER)

    async with client(gateway) as http:
        await http.get("/v2/models/m")
        await http.get("/v2/models/m?sleep_s=0.08")
    (line,) = await _lines(gateway)

    assert line["duration_ms"] >= 80


async def test_a_gateway_that_logs_all_or_none_still_asks_the_endpoint(lab: Lab) -> None:
    replica = lab.replica("1")
    routes = [endpoint("m", replica), logged(endpoint("quiet", replica), OFF)]
    everything = await lab.start(*routes, request_log=RequestLogSpec(mode=LogMode.ALL))
    nothing = await lab.start(
        endpoint("m", replica),
        logged(endpoint("loud", replica), ALL),
        name="second",
        request_log=RequestLogSpec(mode=LogMode.OFF),
    )

    for gateway in (everything, nothing):
        async with client(gateway) as http:
            for name in ("m", "quiet", "loud"):
                await http.get(f"/v2/models/{name}")

    found = [[line["endpoint"] for line in await _lines(each)] for each in (everything, nothing)]
    assert found == [["m", "unknown-model"], ["loud"]]


async def test_a_caller_cannot_forge_a_line_or_make_one_endless(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with client(gateway) as http:
        nasty = b'a"},\t{"code":200,"x":"' + b"\xff"
        headers = {b"x-request-id": nasty, b"traceparent": b"z" * 9000}
        await http.get("/v2/models/m%0a%22/" + "a" * 5000, headers=headers)
    (line,) = await _lines(gateway)

    assert line["code"] == 404
    assert line["request_id"].startswith('a"},\t{"code"')
    assert len(line["traceparent"]) == 64
    assert len(line["path"]) <= 1024


def logged(route: EndpointRoute, log: EndpointLogSpec) -> EndpointRoute:
    return replace(route, request_log=log)
