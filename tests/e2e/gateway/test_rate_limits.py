"""How much a caller may ask for: counted for each, told truly, changed without a disturbance."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.control.limits.limiter import Limiter, make_rules
from headrace.control.limits.service import LimitService
from headrace.control.state import home_url, open_store
from headrace.core import SystemClock
from headrace.core.spec.access import (
    AccessSettings,
    EndpointAccess,
    EndpointLimitsSpec,
    LimitSpec,
    TierSpec,
)
from headrace.gateway import (
    EndpointRoute,
    EnvoyGateway,
    GatewayPolicy,
    RevisionTarget,
    build_snapshot,
)
from tests.e2e.gateway.issuing import api_key, known
from tests.e2e.gateway.lab import Lab, StandIn, client, grpc_target

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]

INFER = "/v2/models/m/infer"
NAMES = ("alice", "bob", "carol")
KEYS = {name: api_key(name) for name in NAMES}
THREE = LimitSpec(requests_per_s=0.5, burst=3)
TIERS = (
    TierSpec(name="gold", limits=LimitSpec(requests_per_s=0.1, burst=4), priority=10),
    TierSpec(name="free", limits=LimitSpec(requests_per_s=0.1, burst=2), priority=-5),
)


def policy(*tiers: TierSpec, tier_of: Mapping[str, str] | None = None) -> GatewayPolicy:
    keys = (known(KEYS[name], name=name, tier=(tier_of or {}).get(name, "")) for name in NAMES)
    return GatewayPolicy(access=AccessSettings(tiers=tiers), keys=tuple(keys))


def shared(found: GatewayPolicy) -> GatewayPolicy:
    access = AccessSettings(tiers=found.access.tiers, shared_limits=True)
    return GatewayPolicy(access=access, keys=found.keys)


def limited(
    replica: StandIn,
    *,
    name: str = "m",
    public: bool = False,
    timeout_s: float | None = 30.0,
    **limits: Any,
) -> EndpointRoute:
    revision = RevisionTarget(version="1", replicas=(replica.address,), weight=100)
    return EndpointRoute(
        name=name,
        arms=(revision,),
        timeout_s=timeout_s,
        access=EndpointAccess(public=public),
        limits=EndpointLimitsSpec(**limits),
    )


async def start(
    lab: Lab, found: GatewayPolicy, *endpoints: EndpointRoute, **changes: Any
) -> EnvoyGateway:
    gateway = EnvoyGateway(lab.settings(**changes))
    lab.gateways.append(gateway)
    await gateway.start(build_snapshot(gateway.settings, endpoints, found))
    return gateway


@contextlib.asynccontextmanager
async def service(
    directory: Path, found: GatewayPolicy, *endpoints: EndpointRoute
) -> AsyncIterator[LimitService]:
    """The rate limit service, in this process."""
    store = open_store(home_url(directory))
    serving = LimitService(
        limiter=Limiter(name="test"),
        store=store,
        clock=SystemClock(),
        addresses=(f"unix:{directory}/limits.sock",),
    )
    told = (
        EndpointRoute(name=e.name, arms=(), limits=e.limits, timeout_s=e.timeout_s)
        for e in endpoints
    )
    serving.set_rules(make_rules(found.access, told))
    task = asyncio.create_task(serving.run())
    try:
        async with asyncio.timeout(30):
            await serving.wait_listening()
        yield serving
    finally:
        task.cancel()
        await asyncio.wait({task})
        store.close()


def by(name: str) -> dict[str, str]:
    return {"x-api-key": KEYS[name]}


async def statuses(
    http: httpx.AsyncClient, count: int, headers: Mapping[str, str], path: str = INFER
) -> list[int]:
    found = []
    for _ in range(count):
        answer = await http.post(path, headers=dict(headers), content=b"{}")
        found.append(answer.status_code)
    return found


async def call(gateway: EnvoyGateway, headers: Mapping[str, str]) -> grpc.aio.AioRpcError | None:
    """The error of one ModelInfer."""
    request = service_pb2.ModelInferRequest(model_name="m")
    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            await stub.ModelInfer(request, metadata=tuple(headers.items()), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error
    return None


def retry_after(error: grpc.aio.AioRpcError) -> str | None:
    told = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
    return next((str(value) for key, value in told if key == "retry-after"), None)


# Counted by the gateway itself


async def test_every_caller_has_its_own_bucket(lab: Lab) -> None:
    gateway = await start(lab, policy(), limited(lab.replica("1"), per_caller=THREE))

    async with client(gateway) as http:
        assert await statuses(http, 4, by("alice")) == [200, 200, 200, 429]
        assert await statuses(http, 3, by("bob")) == [200, 200, 200]


@pytest.mark.long
async def test_a_refusal_says_truly_when_to_come_back(lab: Lab) -> None:
    gateway = await start(lab, policy(), limited(lab.replica("1"), per_caller=THREE))

    async with client(gateway) as http:
        first = await http.post(INFER, headers=by("alice"), content=b"{}")
        await statuses(http, 2, by("alice"))
        refused = await http.post(INFER, headers=by("alice"), content=b"{}")
        wait_s = int(refused.headers["retry-after"])
        await asyncio.sleep(wait_s)
        after = await statuses(http, 2, by("alice"))

    told = [first.headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining")]
    assert told == ["3", "2"]
    assert "retry-after" not in first.headers
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert refused.json() == {"error": "too many requests: a limit per second is reached"}
    assert wait_s == 2
    assert after == [200, 429]


async def test_tiers_differ_and_hold_over_all_endpoints(lab: Lab) -> None:
    replica = lab.replica("1")
    found = policy(*TIERS, tier_of={"alice": "gold", "bob": "free"})
    gateway = await start(lab, found, limited(replica), limited(replica, name="n"))

    async with client(gateway) as http:
        assert await statuses(http, 2, by("alice")) == [200, 200]
        other = await statuses(http, 3, by("alice"), "/v2/models/n/infer")
        assert other == [200, 200, 429]
        assert await statuses(http, 3, by("bob")) == [200, 200, 429]
        assert await statuses(http, 6, by("carol")) == [200] * 6


async def test_an_endpoint_has_a_limit_for_all_callers_together(lab: Lab) -> None:
    replica = lab.replica("1")
    gateway = await start(lab, policy(), limited(replica, total=THREE), limited(replica, name="n"))

    async with client(gateway) as http:
        assert await statuses(http, 2, by("alice")) == [200, 200]
        assert await statuses(http, 2, by("bob")) == [200, 429]
        assert await statuses(http, 2, by("bob"), "/v2/models/n/infer") == [200, 200]


async def test_two_hundred_other_identities_do_not_fill_an_exhausted_bucket(lab: Lab) -> None:
    slow = LimitSpec(requests_per_s=0.01, burst=1)
    others = [api_key(f"o{i}") for i in range(200)]
    keys = [known(KEYS["alice"], name="alice")]
    keys += [known(key, name=f"other-{i}") for i, key in enumerate(others)]
    found = GatewayPolicy(keys=tuple(keys))
    gateway = await start(lab, found, limited(lab.replica("1"), per_caller=slow))

    async with client(gateway) as http:
        assert await statuses(http, 2, by("alice")) == [200, 429]
        for key in others:
            assert await statuses(http, 2, {"x-api-key": key}) == [200, 429]
        assert await statuses(http, 1, by("alice")) == [429]


async def test_strangers_are_told_apart_by_their_address_and_cannot_name_themselves(
    lab: Lab,
) -> None:
    gateway = await start(lab, policy(), limited(lab.replica("1"), public=True, per_caller=THREE))
    url = f"http://127.0.0.1:{gateway.settings.http_port}"

    async with client(gateway) as http:
        found = []
        for i in range(4):
            spoofed = {"x-headrace-caller": f"me-{i}", "x-forwarded-for": f"10.0.0.{i}"}
            found += await statuses(http, 1, spoofed)
    elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(transport=elsewhere, base_url=url) as other:
        assert await statuses(other, 1, {}) == [200]

    assert found == [200, 200, 200, 429]


async def test_grpc_calls_and_http2_count_in_the_same_bucket(lab: Lab) -> None:
    slow = LimitSpec(requests_per_s=0.02, burst=3)
    gateway = await start(lab, policy(), limited(lab.replica("1"), per_caller=slow))
    url = f"http://127.0.0.1:{gateway.settings.http_port}"

    async with httpx.AsyncClient(http1=False, http2=True, base_url=url) as http:
        assert await statuses(http, 1, by("alice")) == [200]
    async with client(gateway) as http:
        assert await statuses(http, 1, by("alice")) == [200]
    assert await call(gateway, by("alice")) is None

    error = await call(gateway, by("alice"))
    assert error is not None
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "too many requests: a limit per second is reached"
    assert 30 < int(retry_after(error) or 0) <= 50
    assert await call(gateway, by("bob")) is None
    async with httpx.AsyncClient(http1=False, http2=True, base_url=url) as http:
        assert await statuses(http, 1, by("alice")) == [429]


@pytest.mark.long
async def test_a_limit_that_changes_under_load_fails_no_legitimate_request(lab: Lab) -> None:
    replica = lab.replica("1")
    plenty = LimitSpec(requests_per_s=1e6)
    gateway = await start(lab, policy(), limited(replica, per_caller=plenty))
    found: list[tuple[float, int, bool]] = []
    done = asyncio.Event()

    async def load(http: httpx.AsyncClient, name: str) -> None:
        while not done.is_set():
            answer = await http.post(INFER, headers=by(name), content=b"{}")
            at = asyncio.get_running_loop().time()
            found.append((at, answer.status_code, "connection" in answer.headers))

    async with client(gateway) as http, asyncio.TaskGroup() as tasks:
        for name in (*NAMES, *NAMES):
            tasks.create_task(load(http, name))
        for rate in range(20):
            more = LimitSpec(requests_per_s=1e6 + rate)
            endpoints = [limited(replica, per_caller=more)]
            await gateway.publish(build_snapshot(gateway.settings, endpoints, policy()))
            await asyncio.sleep(0.02)
        endpoints = [limited(replica, per_caller=LimitSpec(requests_per_s=0.01, burst=1))]
        before = asyncio.get_running_loop().time()
        await gateway.publish(build_snapshot(gateway.settings, endpoints, policy()))
        await asyncio.sleep(1.0)
        done.set()

    assert {status for at, status, _ in found if at < before} == {200}
    assert {status for at, status, _ in found if at > before + 0.5} == {429}
    assert not any(closes for _, status, closes in found if status == 200)


async def test_new_routes_do_not_fill_buckets_again(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    slow = LimitSpec(requests_per_s=0.01, burst=1)
    gateway = await start(lab, policy(), limited(one, per_caller=slow))

    async with client(gateway) as http:
        assert await statuses(http, 2, by("alice")) == [200, 429]
        endpoints = [limited(two, per_caller=slow), limited(one, name="n")]
        await gateway.publish(build_snapshot(gateway.settings, endpoints, policy()))

        assert await statuses(http, 1, by("alice")) == [429]


# Counted by the service


async def test_a_day_has_so_many_requests_whoever_counts_them(lab: Lab) -> None:
    daily = limited(lab.replica("1"), per_caller=LimitSpec(requests_per_day=3))
    address = f"unix:{lab.directory}/limits.sock"
    async with service(lab.directory, policy(), daily):
        gateway = await start(lab, policy(), daily, limits_address=address)
        async with client(gateway) as http:
            assert await statuses(http, 2, by("alice")) == [200, 200]
    async with service(lab.directory, policy(), daily) as again, client(gateway) as http:
        assert await answered_by_service(http, again) == 429
        assert await statuses(http, 1, by("bob")) == [200]
        refused = await http.post(INFER, headers=by("alice"), content=b"{}")

    assert "requests_per_day (3)" in refused.json()["error"]
    until_midnight_s = 86_400 - time.time() % 86_400  # noqa: TID251  # the quota goes by it
    assert abs(int(refused.headers["retry-after"]) - until_midnight_s) < 5
    assert refused.headers["x-ratelimit-remaining"] == "0"


async def answered_by_service(http: httpx.AsyncClient, serving: LimitService) -> int:
    """Alice's status once Envoy has found the service again, which was away."""
    async with asyncio.timeout(10):
        while True:
            answer = await http.post(INFER, headers=by("alice"), content=b"{}")
            if serving.limiter.refusals:
                return answer.status_code
            await asyncio.sleep(0.05)


@pytest.mark.long
async def test_rows_are_counted_when_they_are_known_and_stay_at_the_gateway(lab: Lab) -> None:
    heavy = limited(lab.replica("1"), per_caller=LimitSpec(rows_per_s=10.0))
    address = f"unix:{lab.directory}/limits.sock"
    async with service(lab.directory, policy(), heavy):
        gateway = await start(lab, policy(), heavy, limits_address=address)
        async with client(gateway) as http:
            answer = await http.post(f"{INFER}?rows=25", headers=by("alice"), content=b"{}")
            await asyncio.sleep(0.1)
            refused = await http.post(INFER, headers=by("alice"), content=b"{}")
            other = await statuses(http, 1, by("bob"))
            await asyncio.sleep(int(refused.headers["retry-after"]))
            after = await statuses(http, 1, by("alice"))

    assert answer.json()["headers"]["x-headrace-want"] == "rows"
    assert "x-headrace-rows" not in answer.headers
    assert refused.status_code == 429
    assert "rows_per_s (burst 10)" in refused.json()["error"]
    assert int(refused.headers["retry-after"]) in {2, 3}
    assert (other, after) == ([200], [200])


async def test_so_many_at_once_and_who_leaves_makes_room(lab: Lab) -> None:
    narrow = limited(lab.replica("1"), per_caller=LimitSpec(max_concurrent=2))
    address = f"unix:{lab.directory}/limits.sock"
    async with service(lab.directory, policy(), narrow):
        gateway = await start(lab, policy(), narrow, limits_address=address)
        async with client(gateway) as http:
            slow = [
                asyncio.create_task(
                    http.post(INFER, headers=by("alice"), content=b"sleep-for-ever")
                )
                for _ in range(2)
            ]
            await asyncio.sleep(0.3)
            refused = await http.post(INFER, headers=by("alice"), content=b"{}")
            other = await statuses(http, 1, by("bob"))
            over_grpc = await call(gateway, by("alice"))
            slow[0].cancel()
            await asyncio.wait({slow[0]})
            await asyncio.sleep(0.2)
            one_left = await statuses(http, 3, by("alice"))
            slow[1].cancel()
            await asyncio.wait({slow[1]})
            await asyncio.sleep(0.2)
            grpc_after = await call(gateway, by("alice"))

    assert refused.status_code == 429
    assert "max_concurrent (2)" in refused.json()["error"]
    assert refused.headers["retry-after"] == "1"
    assert over_grpc is not None
    assert over_grpc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "max_concurrent (2)" in (over_grpc.details() or "")
    assert other == [200]
    assert one_left == [200, 200, 200]
    assert grpc_after is None


@pytest.mark.long
async def test_who_leaves_over_http2_or_grpc_makes_room_too(lab: Lab) -> None:
    narrow = limited(lab.replica("1"), per_caller=LimitSpec(max_concurrent=1))
    address = f"unix:{lab.directory}/limits.sock"
    asleep = service_pb2.ModelInferRequest(model_name="m", id="sleep-for-ever")
    async with service(lab.directory, policy(), narrow):
        gateway = await start(lab, policy(), narrow, limits_address=address)
        url = f"http://127.0.0.1:{gateway.settings.http_port}"
        async with httpx.AsyncClient(http1=False, http2=True, base_url=url) as leaving:
            slow = asyncio.create_task(
                leaving.post(INFER, headers=by("alice"), content=b"sleep-for-ever")
            )
            await asyncio.sleep(0.3)
            while_http2 = await call(gateway, by("alice"))
            slow.cancel()
            await asyncio.wait({slow})
        await asyncio.sleep(0.2)
        after_http2 = await call(gateway, by("alice"))
        channel = grpc.aio.insecure_channel(grpc_target(gateway))
        async with channel, client(gateway) as http:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            running = stub.ModelInfer(asleep, metadata=tuple(by("alice").items()), timeout=20)
            await asyncio.sleep(0.3)
            while_grpc = await statuses(http, 1, by("alice"))
            running.cancel()  # a reset of the stream: the connection lives on
            await asyncio.sleep(0.2)
            after_grpc = await statuses(http, 2, by("alice"))

    assert while_http2 is not None
    assert after_http2 is None
    assert while_grpc == [429]
    assert after_grpc == [200, 200]


async def test_two_gateways_share_one_limit(lab: Lab) -> None:
    common = shared(policy(*TIERS, tier_of={"bob": "free"}))
    endpoint = limited(lab.replica("1"), per_caller=LimitSpec(requests_per_s=0.1, burst=4))
    address = f"unix:{lab.directory}/limits.sock"
    async with service(lab.directory, common, endpoint):
        one = await start(lab, common, endpoint, name="a", limits_address=address)
        two = await start(lab, common, endpoint, name="b", limits_address=address)
        async with client(one) as first, client(two) as second:
            found = await statuses(first, 2, by("alice")) + await statuses(second, 3, by("alice"))
            found += await statuses(first, 1, by("alice"))
            tier = await statuses(first, 1, by("bob")) + await statuses(second, 2, by("bob"))
            refused = await second.post(INFER, headers=by("alice"), content=b"{}")

    assert found == [200, 200, 200, 200, 429, 429]
    assert tier == [200, 200, 429]
    assert int(refused.headers["retry-after"]) in {9, 10}


async def test_a_flood_is_refused_before_the_service_is_asked(lab: Lab) -> None:
    each = LimitSpec(requests_per_s=0.1, burst=5, requests_per_day=1000)
    daily = limited(lab.replica("1"), per_caller=each)
    address = f"unix:{lab.directory}/limits.sock"
    async with service(lab.directory, policy(), daily) as serving:
        gateway = await start(lab, policy(), daily, limits_address=address)
        async with client(gateway) as http:
            found = await statuses(http, 50, by("alice"))
            flooded = await http.post(INFER, headers=by("alice"), content=b"{}")
            other = await statuses(http, 1, by("bob"))
        asked = sum(serving.limiter.refusals.values())

    assert found == [200] * 5 + [429] * 45
    assert asked <= 6
    assert flooded.headers["retry-after"] == "1"
    assert other == [200]


async def test_a_service_that_is_gone_or_hangs_lets_requests_pass(lab: Lab) -> None:
    daily = limited(lab.replica("1"), per_caller=LimitSpec(requests_per_day=1))
    address = f"unix:{lab.directory}/limits.sock"
    gateway = await start(lab, policy(), daily, limits_address=address)

    async with client(gateway) as http:
        gone = await statuses(http, 3, by("alice"))
        with socket.socket(socket.AF_UNIX) as hanging:
            hanging.bind(f"{lab.directory}/limits.sock")
            hanging.listen(16)
            began = asyncio.get_running_loop().time()
            hung = await statuses(http, 3, by("alice"))
            took_s = asyncio.get_running_loop().time() - began

    assert gone == hung == [200, 200, 200]
    assert took_s < 2.0


# Sizes and priorities


async def test_an_endpoint_may_take_smaller_bodies_than_the_gateway(lab: Lab) -> None:
    replica = lab.replica("1")
    gateway = await start(
        lab, policy(), limited(replica, max_body_bytes=2000), limited(replica, name="n")
    )

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 1000

    async with client(gateway) as http:
        fits = await http.post(INFER, headers=by("alice"), content=b"x" * 2000)
        sized = await http.post(INFER, headers=by("alice"), content=b"x" * 2001)
        chunked = await http.post(INFER, headers=by("alice"), content=chunks())
        other = await http.post("/v2/models/n/infer", headers=by("alice"), content=b"x" * 5000)
    large = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"x" * 3000])
    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(large, metadata=tuple(by("alice").items()), timeout=10)

    assert fits.status_code == other.status_code == 200
    for refused in (sized, chunked):
        assert refused.status_code == 413
        assert refused.json()["error"]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert all(seen["bytes"] != 2001 for seen in replica.seen())


async def test_a_tiers_priority_reaches_the_replica_and_nobody_gives_himself_another(
    lab: Lab,
) -> None:
    tiers = (
        TierSpec(name="gold", priority=10),
        TierSpec(name="free", priority=-5),
    )
    found = policy(*tiers, tier_of={"alice": "gold", "bob": "free"})
    replica = lab.replica("1")
    gateway = await start(lab, found, limited(replica))
    spoofed = {"x-headrace-priority": "1", "x-headrace-slo-s": "9", "x-headrace-lease": "x"}

    levels = {}
    async with client(gateway) as http:
        for name in NAMES:
            answer = await http.post(INFER, headers={**by(name), **spoofed}, content=b"{}")
            got = answer.json()["headers"]
            levels[name] = got["x-headrace-priority"]
            assert not {"x-headrace-slo-s", "x-headrace-lease"} & set(got)
            assert await call(gateway, {**by(name), **spoofed}) is None

    assert levels == {"alice": "4", "bob": "6", "carol": "5"}
    over_grpc = [
        seen["headers"]["x-headrace-priority"] for seen in replica.seen() if "GRPC" in seen["path"]
    ]
    assert over_grpc == ["4", "6", "5"]
