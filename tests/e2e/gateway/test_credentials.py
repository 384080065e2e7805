"""API keys end at the gateway, on every route and over every protocol."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import grpc
import pytest

from headrace.core.spec.access import EndpointAccess
from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import (
    EndpointRoute,
    EnvoyGateway,
    MirrorTarget,
    RevisionTarget,
    build_snapshot,
)
from tests.e2e.attacks.guarded import PROTOCOLS, Answer, Guarded
from tests.e2e.gateway.issuing import Issuer, api_key, known
from tests.e2e.gateway.lab import Lab, StandIn
from tests.e2e.gateway.recorder import Recorder, recorder

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
KEY: Final = api_key("good")
OTHER: Final = api_key("other")
ISSUER: Final = Issuer()
OURS: Final[dict[str, list[tuple[str, str]]]] = {
    "header": [("x-api-key", KEY)],
    "two headers": [("x-api-key", OTHER), ("x-api-key", KEY)],
    "bearer": [("authorization", f"Bearer {KEY}")],
    "mixed case": [("authorization", f"bEaReR {KEY}")],
    "spaces": [("authorization", f"Bearer   {KEY}")],
    "tab": [("authorization", f"Bearer\t{KEY}")],
    "no space": [("authorization", f"Bearer:{KEY}")],
    "no scheme": [("authorization", KEY)],
    "another scheme": [("authorization", f"Token {KEY}")],
    "quoted": [("authorization", f'Bearer "{KEY}"')],
    "two lines": [("authorization", "Bearer abc"), ("authorization", f"Bearer {KEY}")],
    "one line": [("authorization", f"Bearer abc,Bearer {KEY}")],
    "one line, no scheme": [("authorization", f"Bearer abc,{KEY}")],
    "both": [("x-api-key", KEY), ("authorization", f"Bearer {KEY}")],
}
FOREIGN: Final = (
    "Bearer sk-live-0123456789",
    "Bearer ey0.hr_0123456789ab_c.ehr_0123456789ab_",
    "Basic dXNlcjpwYXNzd29yZA==",
    'Digest username="hr", uri="/a"',
)


def to_upstream(server: Recorder, protocol: str, version: str = "2") -> RevisionTarget:
    scheme = "grpc" if protocol == "grpc" else "http"
    settings = UpstreamSpec(
        url=f"{scheme}://127.0.0.1:{server.port}",
        protocol=UpstreamProtocol(protocol),
        health_path=None,
    )
    return RevisionTarget(version=version, replicas=(), weight=100, upstream=settings)


def to_replica(replica: StandIn, weight: int = 100) -> RevisionTarget:
    return RevisionTarget(version="1", replicas=(replica.address,), weight=weight)


def endpoint(*arms: RevisionTarget, **changes: Any) -> EndpointRoute:
    return EndpointRoute(name="m", arms=arms, timeout_s=10.0, **changes)


async def start(lab: Lab, *endpoints: EndpointRoute, **changes: Any) -> EnvoyGateway:
    gateway = EnvoyGateway(lab.settings(**changes))
    lab.gateways.append(gateway)
    await gateway.start(build_snapshot(gateway.settings, endpoints, ISSUER.policy(known(KEY))))
    return gateway


async def ask(
    gateway: EnvoyGateway,
    protocol: str,
    headers: Sequence[tuple[str, str]],
    path: str = "/v2/models/m/infer",
) -> Answer:
    guarded = Guarded(gateway, ISSUER, None)  # type: ignore[arg-type]  # nobody looks at it here
    return await asyncio.to_thread(guarded.ask, protocol, headers, path=path)


@pytest.mark.parametrize("access", [None, EndpointAccess(public=True)], ids=["open", "public"])
async def test_a_key_does_not_travel_to_an_upstream_or_a_replica(
    lab: Lab, access: EndpointAccess | None
) -> None:
    replica = lab.replica("ours")
    async with recorder() as v2, recorder() as http:
        gateway = await start(
            lab,
            endpoint(to_upstream(v2, "v2"), access=access),
            replace(endpoint(to_upstream(http, "http"), access=access), name="plain"),
            replace(endpoint(to_replica(replica), access=access), name="ours"),
        )
        count = 0
        for headers in OURS.values():
            for protocol in ("HTTP/1.1", "HTTP/2"):
                for path in (
                    "/v2/models/m/infer",
                    "/v2/models/m/versions/2/infer",
                    "/endpoints/m/a",
                    "/endpoints/plain/a",
                    "/v2/models/ours/infer",
                    "/v2/models/ours/versions/1",
                    "/v1/models/ours:predict",
                ):
                    assert (await ask(gateway, protocol, headers, path)).status == 200, path
                count += 1

    assert (len(v2.heads), len(http.heads), len(replica.seen())) == (3 * count, count, 3 * count)
    for head in (*v2.heads, *http.heads, *map(repr, replica.seen())):
        assert KEY not in head
        assert "x-api-key" not in head.lower()


class Metadata(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers every call, and keeps its metadata."""

    def __init__(self) -> None:
        self.received: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.received.append(repr(details.invocation_metadata))
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, _context: object) -> bytes:
        return b""


async def test_a_key_does_not_travel_over_grpc(lab: Lab) -> None:
    replica, theirs = lab.replica("ours"), Metadata()
    server = grpc.aio.server(handlers=[theirs])
    upstream = to_upstream(Recorder(server.add_insecure_port("127.0.0.1:0")), "grpc")
    await server.start()
    sent = [headers for headers in OURS.values() if "\t" not in headers[0][1]]

    for name, arm in (("ours", to_replica(replica)), ("theirs", upstream)):
        gateway = await start(lab, endpoint(arm), name=name)
        for headers in sent:
            assert (await ask(gateway, "gRPC", headers)).status == 200
    await server.stop(None)

    assert len(replica.seen()) == len(theirs.received) == len(sent)
    for text in (*map(repr, replica.seen()), *theirs.received):
        assert KEY not in text
        assert "x-api-key" not in text


async def test_a_key_does_not_travel_with_a_request_about_no_endpoint(lab: Lab) -> None:
    replica = lab.replica("ours")
    gateway = await start(lab, endpoint(to_replica(replica)))

    for path in ("/v2", "/v2/models/stats", "/v2/trace/setting", "/v2/logging"):
        assert (await ask(gateway, "HTTP/1.1", [("x-api-key", KEY)], path)).status == 200
        headers = [("authorization", f"Bearer {KEY}")]
        assert (await ask(gateway, "HTTP/2", headers, path)).status == 200

    assert len(replica.seen()) == 8
    assert KEY not in repr(replica.seen())


async def test_a_key_travels_to_no_side_of_a_split_and_with_no_copy(lab: Lab) -> None:
    replica, shadow = lab.replica("ours"), lab.replica("shadow")
    async with recorder() as theirs, recorder() as copies:
        arms = (
            replace(to_upstream(theirs, "v2"), weight=50),
            to_replica(replica, 50),
            replace(to_upstream(copies, "v2"), version="3", weight=0),
            RevisionTarget(version="4", replicas=(shadow.address,), weight=0),
        )
        sticky = StickySpec(header="x-api-key")
        for key in ("3", "4"):
            mirror = MirrorTarget(key=key, percent=100)
            for changes in ({}, {"sticky": sticky}):
                route = endpoint(*arms, mirror=mirror, split_id="r1", **changes)
                gateway = await start(lab, route, name=f"gw{key}{len(changes)}")
                for headers in [*OURS.values(), *OURS.values()]:
                    assert (await ask(gateway, "HTTP/1.1", headers)).status == 200
        until = asyncio.get_running_loop().time() + 20
        while min(len(copies.heads), len(shadow.seen())) < 4 * len(OURS):
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.02)

    assert theirs.heads
    assert replica.seen()
    for text in (*theirs.heads, *copies.heads, *map(repr, [*replica.seen(), *shadow.seen()])):
        assert KEY not in text
        assert "x-api-key" not in text.lower()


async def test_an_authorization_that_is_not_ours_reaches_an_open_upstream(lab: Lab) -> None:
    replica = lab.replica("ours")
    async with recorder() as server:
        gateway = await start(
            lab,
            endpoint(to_upstream(server, "v2")),
            replace(endpoint(to_replica(replica)), name="ours"),
        )
        for value in FOREIGN:
            headers = [("authorization", value)]
            for protocol in ("HTTP/1.1", "HTTP/2"):
                assert (await ask(gateway, protocol, headers)).status == 200
                assert (await ask(gateway, protocol, headers, "/v2/models/ours")).status == 200
                assert f"authorization: {value}\r\n" in server.heads[-1]

    assert len(server.heads) == 2 * len(FOREIGN)
    assert "authorization" not in repr(replica.seen())


async def test_a_key_that_an_endpoint_asks_for_does_not_travel(lab: Lab) -> None:
    replica = lab.replica("ours")
    route = endpoint(to_replica(replica), access=EndpointAccess())
    gateway = await start(lab, route)

    for protocol in PROTOCOLS:
        for name in ("header", "bearer"):
            assert (await ask(gateway, protocol, OURS[name])).status == 200, protocol

    assert len(replica.seen()) == 2 * len(PROTOCOLS)
    assert KEY not in repr(replica.seen())
