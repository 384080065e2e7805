"""What Envoy counts of each arm, whoever made the answer."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import (
    ArmStatistics,
    EndpointRoute,
    EnvoyGateway,
    GatewayUnavailableError,
    RevisionTarget,
    build_snapshot,
)
from tests.e2e.gateway.lab import Lab, StandIn, arms, client, grpc_target, split
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
PATH = "/v2/models/m/infer"
Summary = tuple[int, int, int]


def _counted(one: StandIn, *, timeout_s: float = 30.0) -> EndpointRoute:
    return replace(split("m", ("1", 100, one)), split_id="r1", timeout_s=timeout_s)


def _summary(arm: ArmStatistics) -> Summary:
    assert sum(arm.latency.values()) == arm.requests
    return (arm.requests, arm.errors, arm.rejections)


async def _arm(gateway: EnvoyGateway, key: str = "1") -> ArmStatistics:
    return (await gateway.arm_statistics({"m"})).arms["m", key]


async def test_answers_are_counted_by_arm_as_soon_as_they_are_there(lab: Lab) -> None:
    new, old = lab.replica("new"), lab.replica("old")
    route = EndpointRoute(
        name="m",
        arms=(
            RevisionTarget(version="2", replicas=(new.address,), weight=30),
            RevisionTarget(version="1", replicas=(old.address,), weight=30, role="baseline"),
            RevisionTarget(version="1", replicas=(old.address,), weight=40),
        ),
        split_id="r1",
    )
    gateway = await lab.start(route, replace(route, name="other"), replace(route, name="m.2"))

    for round_ in range(1, 4):
        await arms(gateway, PATH, [{}] * 60)
        await arms(gateway, "/v2/models/other/infer", [{}] * 5)
        await arms(gateway, "/v2/models/m/versions/2/infer", [{}] * 5)

        found = (await gateway.arm_statistics({"m"})).arms
        assert set(found) == {("m", "2"), ("m", "1~baseline"), ("m", "1")}
        assert sum(arm.requests for arm in found.values()) == 60 * round_


async def test_how_requests_ended_is_told_apart_over_http(lab: Lab) -> None:
    gateway = await lab.start(_counted(lab.replica("1")))

    async with client(gateway) as http:
        for status, times in ((200, 5), (404, 4), (422, 1), (429, 2), (500, 3), (503, 1)):
            for _ in range(times):
                await http.get(f"{PATH}?status={status}")

    assert _summary(await _arm(gateway)) == (16, 6, 5)


async def test_how_requests_ended_is_told_apart_over_grpc(lab: Lab) -> None:
    gateway = await lab.start(_counted(lab.replica("1")))

    async with InferenceServerClient(grpc_target(gateway)) as triton:
        for _ in range(3):
            await triton.get_model_metadata("m")
        for _ in range(2):  # the stand-in does not know it: UNIMPLEMENTED
            with pytest.raises(InferenceServerException):
                await triton.get_model_config("m")

    assert _summary(await _arm(gateway)) == (5, 2, 0)


async def test_requests_without_a_split_id_are_not_counted(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start(split("m", ("1", 100, one)))
    forged = {"x-headrace-split": "m-r1"}

    await arms(gateway, PATH, [forged] * 5)

    assert (await gateway.arm_statistics({"m"})).arms == {}


async def test_without_a_split_id_requests_are_counted_apart(lab: Lab) -> None:
    one = lab.replica("1")
    plain, idle = split("m", ("1", 100, one)), EndpointRoute(name="idle", arms=())
    gateway = await lab.start(plain, replace(plain, name="n", split_id="r1"), idle)

    async with client(gateway) as http:
        for path in ("m", "m/versions/1", "n", "idle", "unknown"):
            for status in (200, 404, 500):
                await http.get(f"/v2/models/{path}/infer?status={status}")
        with pytest.raises(httpx.ReadTimeout):
            await http.get(f"{PATH}?sleep_s=1", timeout=0.1)
        await asyncio.sleep(0.1)
    one.kill()
    async with client(gateway) as http:
        for path in ("m", "n"):
            assert (await http.get(f"/v2/models/{path}/infer")).status_code == 503

    found = (await gateway.endpoint_statistics({"m", "n", "idle"})).arms
    assert {arm: (*_summary(one), one.abandoned) for arm, one in found.items()} == {
        ("m", "1"): (8, 3, 2, 1),
        ("n", "1"): (4, 2, 1, 0),
        ("idle", ""): (3, 3, 0, 0),
    }


async def test_what_the_gateway_refused_for_a_dead_arm_is_the_arms_error(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start(_counted(one))
    one.kill()

    async with client(gateway) as http:
        assert (await http.get(PATH)).status_code == 503
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        with pytest.raises(InferenceServerException):
            await triton.get_model_metadata("m")

    assert _summary(await _arm(gateway)) == (2, 2, 0)


async def test_an_arm_that_is_too_late_has_failed(lab: Lab) -> None:
    gateway = await lab.start(_counted(lab.replica("1"), timeout_s=0.1))

    async with client(gateway) as http:
        assert (await http.get(f"{PATH}?sleep_s=3")).status_code == 504

    arm = await _arm(gateway)
    assert _summary(arm) == (1, 1, 0)
    assert min(arm.latency)[0] >= 0.5


async def test_a_server_that_fails_its_health_checks_fails_its_requests(lab: Lab) -> None:
    nowhere = UpstreamSpec(
        url=f"http://127.0.0.1:{free_port()}", protocol=UpstreamProtocol.V2, health_interval_s=0.1
    )
    one = lab.replica("1")
    route = EndpointRoute(
        name="m",
        arms=(
            RevisionTarget(version="2", replicas=(), weight=100, upstream=nowhere),
            RevisionTarget(version="1", replicas=(one.address,), weight=0),
        ),
        split_id="r1",
    )
    gateway = await lab.start(route)

    async with client(gateway) as http:
        for _ in range(5):
            assert (await http.get(PATH)).status_code == 503
        assert (await http.get("/v2/models/m/versions/2/infer")).status_code == 503

    assert _summary(await _arm(gateway, "2")) == (5, 5, 0)
    assert await gateway.upstream_health("m", "2") == (0, 1)
    assert await gateway.upstream_health("m", "1") == (1, 1)
    assert await gateway.upstream_health("m", "3") == (0, 0)


async def test_callers_who_leave_are_requests_but_no_errors(lab: Lab) -> None:
    gateway = await lab.start(_counted(lab.replica("1")))

    async with client(gateway) as http:
        with pytest.raises(httpx.TimeoutException):
            await http.get(f"{PATH}?sleep_s=2", timeout=0.2)
    found = {}
    for _ in range(500):
        found = dict((await gateway.arm_statistics({"m"})).arms)
        if found and found["m", "1"].requests:
            break
        await asyncio.sleep(0.01)

    assert _summary(found["m", "1"]) == (1, 0, 0)
    assert 0.15 < min(found["m", "1"].latency)[0] < 1


async def test_latencies_are_in_buckets_a_tenth_wide(lab: Lab) -> None:
    gateway = await lab.start(_counted(lab.replica("1")))

    async with client(gateway) as http:
        for _ in range(5):
            await http.get(f"{PATH}?sleep_s=0.05")

    arm = await _arm(gateway)
    assert min(arm.latency)[0] >= 0.049
    assert all(w <= 0.1001 * low for low, w in arm.latency)


async def test_an_envoy_that_was_started_again_counts_in_another_epoch(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start(_counted(one))
    await arms(gateway, PATH, [{}] * 3)
    before = await gateway.arm_statistics({"m"})

    await gateway.stop(1.0)
    with pytest.raises(GatewayUnavailableError, match="is not running"):
        await gateway.arm_statistics({"m"})
    await gateway.start(build_snapshot(gateway.settings, [_counted(one)]))
    after = await gateway.arm_statistics({"m"})

    assert before.arms["m", "1"].requests == 3
    assert after.arms == {}
    assert after.epoch != before.epoch


async def test_counts_go_on_while_weights_change(lab: Lab) -> None:
    new, old = lab.replica("new"), lab.replica("old")
    gateway = await lab.start()
    for weight in (10, 50, 90):
        route = split("m", ("2", weight, new), ("1", 100 - weight, old))
        await lab.publish(gateway, replace(route, split_id="r1"))
        await arms(gateway, PATH, [{}] * 20)

    found = (await gateway.arm_statistics({"m"})).arms
    assert sum(arm.requests for arm in found.values()) == 60
