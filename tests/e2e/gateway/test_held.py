"""Requests that wait in the control plane until there is somebody to answer them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import uvicorn
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from headrace.control.asgi.guards import Receive, Scope, Send
from headrace.control.gateway.activator import MAX_HELD_BYTES, Activator, HeldRequests, HoldLimits
from headrace.gateway import EndpointRoute, EnvoyGateway, RevisionTarget, listen_unix
from tests.e2e.gateway.lab import Lab, StandIn, client, grpc_target

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
PATH = "/v2/models/m/infer"
ASLEEP = EndpointRoute(
    name="m",
    arms=(RevisionTarget(version="1", replicas=(), weight=100),),
    timeout_s=5.0,
    held=True,
    hold_s=3.0,
)


def _awake(*replicas: StandIn) -> EndpointRoute:
    target = RevisionTarget(
        version="1", replicas=tuple(one.address for one in replicas), weight=100
    )
    return replace(ASLEEP, arms=(target,), held=False)


async def _nothing_else(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@dataclass
class Plane:
    """As much of a control plane as holds requests."""

    lab: Lab
    limits: HoldLimits | None = field(default_factory=lambda: HoldLimits(max_held=3, hold_s=3.0))
    woken: list[str] = field(default_factory=list)
    activator: Activator = field(init=False)

    def __post_init__(self) -> None:
        self.activator = Activator(lambda _: self.limits, self.woken.append)

    @property
    def address(self) -> str:
        return f"unix:{self.lab.directory}/control.sock"

    async def answer_with(self, gateway: EnvoyGateway, *replicas: StandIn) -> None:
        await self.lab.publish(gateway, _awake(*replicas))
        self.limits = None
        self.activator.release("m")

    async def until_held(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.activator.held.get("m", 0) != count:  # noqa: ASYNC110  # no event to wait for
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def _running(lab: Lab) -> AsyncIterator[Plane]:
    plane = Plane(lab)
    sock = listen_unix(lab.directory / "control.sock")
    app: Any = HeldRequests(plane.activator, _nothing_else)
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server._serve([sock]))
        try:
            yield plane
        finally:
            server.should_exit = True


async def _infer(gateway: EnvoyGateway, size: int = 1) -> str:
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        tensor = InferInput("x", [size], "FP32")
        tensor.set_data_from_numpy(np.zeros(size, np.float32))
        result = await triton.infer("m", [tensor])
        return str(result.get_response().model_version)


async def test_held_requests_are_answered_once_somebody_can(lab: Lab) -> None:
    one = lab.replica("1")
    async with _running(lab) as plane:
        gateway = await lab.start(ASLEEP, control_address=plane.address)
        async with client(gateway) as http, asyncio.TaskGroup() as group:
            headers = {"x-test": "1", "x-request-id": "id-1"}
            posted = group.create_task(
                http.post(f"{PATH}?a=b%20c", content=b"x" * 5000, headers=headers)
            )
            got = group.create_task(http.get("/v2/models/m/versions/1"))
            over_grpc = group.create_task(_infer(gateway, 1000))
            await plane.until_held(3)
            await plane.answer_with(gateway, one)

    answer = posted.result().json()
    assert (answer["path"], answer["bytes"]) == (f"{PATH}?a=b%20c", 5000)
    assert answer["headers"]["x-test"] == "1"
    assert answer["headers"]["x-request-id"] == "id-1"
    assert got.result().json()["path"] == "/v2/models/m/versions/1"
    assert over_grpc.result() == "1"
    assert plane.woken == ["m"]
    assert "location" not in posted.result().headers


async def test_a_held_request_of_openai_is_answered_and_measured(lab: Lab) -> None:
    one = lab.replica("1")
    (arm,) = ASLEEP.arms
    async with _running(lab) as plane:
        asleep = replace(ASLEEP, arms=(replace(arm, encodes=True),))
        gateway = await lab.start(asleep, control_address=plane.address)
        async with client(gateway) as http, asyncio.TaskGroup() as group:
            body = {"model": "m", "input": "x"}
            posted = group.create_task(http.post("/v1/embeddings?a=b", json=body))
            await plane.until_held(1)
            awake = replace(asleep, arms=(replace(arm, encodes=True, replicas=(one.address,)),))
            await lab.publish(gateway, replace(awake, held=False))
            plane.limits = None
            plane.activator.release("m")

    assert posted.result().json()["path"] == "/v1/embeddings?a=b"
    (counted,) = (await gateway.token_statistics()).counts
    assert (counted.endpoint, counted.version, counted.credential) == ("m", "1", "")


async def test_an_endpoint_that_is_held_again_waits_again(lab: Lab) -> None:
    one = lab.replica("1")
    async with _running(lab) as plane:
        gateway = await lab.start(ASLEEP, control_address=plane.address)
        async with client(gateway) as http, asyncio.TaskGroup() as group:
            waiting = group.create_task(http.post(PATH, content=b"body"))
            await plane.until_held(1)
            plane.activator.release("m")  # before the new routes: it comes back
            await plane.until_held(1)
            await plane.answer_with(gateway, one)

    assert waiting.result().json()["bytes"] == 4


async def test_many_wait_while_the_routes_change_under_them(lab: Lab) -> None:
    """What a table added to a kept request must not be freed with the table."""
    one = lab.replica("1")
    other = replace(_awake(one), name="n", split_id="r1")
    async with _running(lab) as plane:
        plane.limits = HoldLimits(max_held=100, hold_s=3.0)
        gateway = await lab.start(ASLEEP, other, control_address=plane.address)
        async with client(gateway) as http, asyncio.TaskGroup() as group:
            over_http = [
                group.create_task(http.post(PATH, content=b"x" * i, headers={"x-test": str(i)}))
                for i in range(30)
            ]
            over_grpc = [group.create_task(_infer(gateway)) for _ in range(10)]
            await plane.until_held(40)
            for i in range(5):
                await lab.publish(gateway, ASLEEP, replace(other, split_id=f"r{i + 2}"))
            await plane.answer_with(gateway, one)

    assert [t.result().json()["headers"]["x-test"] for t in over_http] == [*map(str, range(30))]
    assert {t.result() for t in over_grpc} == {"1"}
    names = {name for request in one.seen() for name in request["headers"]}
    assert all(name.isascii() and name.replace("-", "").isalnum() for name in names)


async def test_more_than_may_wait_are_refused_and_say_when_to_come_again(lab: Lab) -> None:
    async with _running(lab) as plane:
        gateway = await lab.start(ASLEEP, control_address=plane.address)
        async with client(gateway) as http, asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(http.post(PATH, content=b"x"))
            await plane.until_held(3)
            refused = await http.post(PATH, content=b"x")
            with pytest.raises(InferenceServerException) as over_grpc:
                await _infer(gateway)
            await plane.answer_with(gateway, lab.replica("1"))

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "3 requests wait" in refused.json()["error"]
    assert over_grpc.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


async def test_nobody_waits_longer_than_the_bound(lab: Lab) -> None:
    async with _running(lab) as plane:
        plane.limits = HoldLimits(max_held=3, hold_s=0.2)
        gateway = await lab.start(ASLEEP, control_address=plane.address)
        async with client(gateway) as http:
            late = await http.post(PATH, content=b"x")
        with pytest.raises(InferenceServerException) as over_grpc:
            await _infer(gateway)

    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert "not ready 0.2 s" in late.json()["error"]
    assert over_grpc.value.status() == "StatusCode.UNAVAILABLE"
    assert "not ready 0.2 s" in over_grpc.value.message()


async def test_a_caller_who_leaves_frees_the_place(lab: Lab) -> None:
    async with _running(lab) as plane:
        gateway = await lab.start(ASLEEP, control_address=plane.address)
        async with client(gateway) as http:
            task = asyncio.create_task(http.post(PATH, content=b"x"))
            await plane.until_held(1)
            task.cancel()
            await plane.until_held(0)


async def test_a_request_as_large_as_envoy_keeps_waits_and_a_larger_one_is_refused(
    lab: Lab,
) -> None:
    async with _running(lab) as plane:
        gateway = await lab.start(ASLEEP, control_address=plane.address)
        async with client(gateway) as http:
            large = await http.post(PATH, content=b"x" * (MAX_HELD_BYTES + 1))
            async with asyncio.TaskGroup() as group:
                fits = group.create_task(http.post(PATH, content=b"x" * MAX_HELD_BYTES))
                over_grpc = group.create_task(_infer(gateway, 260_000))
                await plane.until_held(2)
                await plane.answer_with(gateway, lab.replica("1"))

    assert (large.status_code, large.headers["retry-after"]) == (503, "1")
    assert fits.result().json()["bytes"] == MAX_HELD_BYTES
    assert over_grpc.result() == "1"
    assert plane.woken == ["m", "m"]


async def test_without_a_control_plane_the_answer_is_quick(lab: Lab) -> None:
    gateway = await lab.start(ASLEEP, control_address=f"unix:{lab.directory}/none.sock")

    began = time.monotonic()
    async with client(gateway) as http:
        answer = await http.post(PATH, content=b"x")
    with pytest.raises(InferenceServerException) as over_grpc:
        await _infer(gateway)

    assert time.monotonic() - began < 1.0
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert over_grpc.value.status() == "StatusCode.UNAVAILABLE"


async def test_a_caller_cannot_have_itself_held(lab: Lab) -> None:
    one = lab.replica("1")
    async with _running(lab) as plane:
        gateway = await lab.start(_awake(one), control_address=plane.address)
        async with client(gateway) as http:
            answer = await http.get("/v2/models/stats", headers={"x-headrace-endpoint": "m"})

    assert answer.status_code == 404
    assert plane.woken == []


async def test_a_gateway_with_only_held_endpoints_is_ready(lab: Lab) -> None:
    gateway = await lab.start(ASLEEP, control_address=f"unix:{lab.directory}/none.sock")

    async with client(gateway) as http:
        assert (await http.get("/v2/health/ready")).status_code == 200
