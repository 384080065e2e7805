"""Who is let in, as whom, and what those are told who are not."""

import time
from collections.abc import Mapping
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.core import SystemClock
from headrace.core.access_settings import EndpointAccess
from headrace.gateway import EndpointRoute, EnvoyGateway, GatewayPolicy, build_snapshot
from tests.e2e.gateway.issuing import ALGORITHMS, Issuer, api_key, known
from tests.e2e.gateway.lab import Lab, StandIn, client, endpoint, grpc_target, split

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]

ISSUER = Issuer()
KEY = api_key("k1")
EVERYWHERE = "0.0.0.0"  # noqa: S104  # what a gateway does that is not bound to loopback
INFER = "/v2/models/m/infer"


async def start(
    lab: Lab, policy: GatewayPolicy, *endpoints: EndpointRoute, **changes: Any
) -> EnvoyGateway:
    gateway = EnvoyGateway(lab.settings(**changes))
    lab.gateways.append(gateway)
    await gateway.start(build_snapshot(gateway.settings, endpoints, policy))
    return gateway


def guarded(replica: StandIn, *any_of: str, name: str = "m", public: bool = False) -> EndpointRoute:
    access = EndpointAccess(public=public, any_of=any_of or EndpointAccess().any_of)
    found = endpoint(name, replica)
    return EndpointRoute(
        name=name, revisions=found.revisions, timeout_s=found.timeout_s, access=access
    )


async def ask(
    gateway: EnvoyGateway, headers: Mapping[str, str] | None = None, path: str = INFER
) -> httpx.Response:
    async with client(gateway) as http:
        return await http.post(path, headers=dict(headers or {}), content=b"{}")


async def call(
    gateway: EnvoyGateway, headers: Mapping[str, str] | None = None, *, model: str = "m"
) -> tuple[grpc.StatusCode, str]:
    """The status of one ModelInfer, and its text."""
    request = service_pb2.ModelInferRequest(model_name=model)
    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            await stub.ModelInfer(request, metadata=tuple((headers or {}).items()), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def received(answer: httpx.Response) -> dict[str, str]:
    """The headers that the replica got."""
    assert answer.status_code == 200, answer.text
    headers: dict[str, str] = answer.json()["headers"]
    return headers


@pytest.mark.parametrize("headers", [{"x-api-key": KEY}, bearer(KEY)], ids=["header", "bearer"])
async def test_a_key_lets_its_holder_in_and_stays_at_the_gateway(
    lab: Lab, headers: dict[str, str]
) -> None:
    policy = ISSUER.policy(known(KEY, tier="gold"))
    gateway = await start(lab, policy, guarded(lab.replica("1")))

    for _ in range(2):
        got = received(await ask(gateway, headers))
        assert got["x-headrace-caller"] == "robot"
        assert got["x-headrace-credential"] == "key:robot"
        assert got["x-headrace-tier"] == "gold"
        assert not {"authorization", "x-api-key"} & set(got)
    assert await call(gateway, headers) == (grpc.StatusCode.OK, "")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_lets_its_subject_in(lab: Lab, algorithm: str) -> None:
    gateway = await start(lab, ISSUER.policy(), guarded(lab.replica("1")))
    token = ISSUER.token(algorithm=algorithm, tier="gold", scope=["infer:m"])

    for _ in range(2):
        got = received(await ask(gateway, bearer(token)))
        assert got["x-headrace-caller"] == "corp/alice"
        assert got["x-headrace-credential"] == "jwt:corp"
        assert got["x-headrace-tier"] == "gold"
        assert "authorization" not in got
    assert await call(gateway, bearer(token)) == (grpc.StatusCode.OK, "")


async def test_nobody_is_told_the_same_whatever_the_model(lab: Lab) -> None:
    gateway = await start(lab, ISSUER.policy(), guarded(lab.replica("1")), host=EVERYWHERE)

    known_model = await ask(gateway)
    unknown = await ask(gateway, path="/v2/models/other/infer")

    assert known_model.status_code == unknown.status_code == 401
    assert known_model.json() == unknown.json()
    assert "x-api-key: hr_..." in known_model.json()["error"]
    assert known_model.headers["www-authenticate"] == 'Bearer realm="headrace"'
    assert await call(gateway) == await call(gateway, model="other")
    code, text = await call(gateway)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert text == known_model.json()["error"]


async def test_whoever_lacks_the_scope_is_told_which(lab: Lab) -> None:
    policy = ISSUER.policy(known(KEY, "infer:other"))
    gateway = await start(lab, policy, guarded(lab.replica("1")))

    answer = await ask(gateway, {"x-api-key": KEY})
    code, text = await call(gateway, {"x-api-key": KEY})

    assert answer.status_code == 403
    assert answer.json()["error"] == (
        "'robot' may not call endpoint 'm': it needs the scope 'infer:m'"
    )
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == answer.json()["error"]


async def test_a_scope_may_name_one_version(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    found = split("m", ("1", 100, one), ("2", 0, two))
    guard = EndpointRoute(name="m", revisions=found.revisions, access=EndpointAccess())
    gateway = await start(lab, ISSUER.policy(known(KEY, "infer:m:2")), guard)

    pinned = await ask(gateway, {"x-api-key": KEY}, "/v2/models/m/versions/2/infer")
    other = await ask(gateway, {"x-api-key": KEY}, "/v2/models/m/versions/1/infer")
    split_ = await ask(gateway, {"x-api-key": KEY})

    assert received(pinned)
    assert (other.status_code, split_.status_code) == (403, 403)


async def test_an_endpoint_takes_only_what_it_names(lab: Lab) -> None:
    replica = lab.replica("1")
    endpoints = (
        guarded(replica, "key"),
        guarded(replica, "jwt:corp", name="tokens"),
        guarded(replica, "jwt:elsewhere", name="others"),
    )
    gateway = await start(lab, ISSUER.policy(known(KEY)), *endpoints)
    token = bearer(ISSUER.token())

    assert received(await ask(gateway, {"x-api-key": KEY}))
    assert received(await ask(gateway, token, "/v2/models/tokens/infer"))
    for headers, name in ((token, "m"), ({"x-api-key": KEY}, "tokens"), (token, "others")):
        refused = await ask(gateway, headers, f"/v2/models/{name}/infer")
        assert refused.status_code == 401
        assert "is not how callers show here who they are" in refused.json()["error"]
        assert (await call(gateway, headers, model=name))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_public_endpoints_ask_nobody_beside_those_that_do(lab: Lab) -> None:
    replica = lab.replica("1")
    endpoints = (guarded(replica), guarded(replica, name="free", public=True))
    gateway = await start(lab, ISSUER.policy(), *endpoints, host=EVERYWHERE)

    free = received(await ask(gateway, path="/v2/models/free/infer"))

    assert "x-headrace-caller" not in free
    assert await call(gateway, model="free") == (grpc.StatusCode.OK, "")
    assert (await call(gateway, model="m"))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert (await call(gateway, model="none"))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert (await call(gateway, model=""))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_beyond_loopback_only_health_is_open(lab: Lab) -> None:
    policy = ISSUER.policy(known(KEY, "infer:m"))
    gateway = await start(lab, policy, guarded(lab.replica("1")), host=EVERYWHERE)

    async with client(gateway) as http:
        for path in ("/v2", "/v2/models", "/v1/models", "/v2/models/stats", "/", "/v2/repository"):
            assert (await http.get(path)).status_code == 401, path
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await http.get(path)).status_code == 200, path
        listing = await http.get("/v2/models", headers={"x-api-key": KEY})
        unknown = await http.get("/v2/models/none", headers={"x-api-key": KEY})
    assert listing.json() == {"models": ["m"]}
    assert unknown.status_code == 404


async def test_a_key_ends_by_itself(lab: Lab) -> None:
    key = known(KEY, expires_at=SystemClock().now() + 2)
    gateway = await start(lab, ISSUER.policy(key), guarded(lab.replica("1")))

    assert received(await ask(gateway, {"x-api-key": KEY}))
    deadline = time.monotonic() + 3
    while (answer := await ask(gateway, {"x-api-key": KEY})).status_code == 200:
        assert time.monotonic() < deadline
    assert answer.json()["error"] == "Unknown, expired or revoked API key"


async def test_the_control_planes_own_requests_are_not_asked(lab: Lab) -> None:
    gateway = await start(lab, ISSUER.policy(), guarded(lab.replica("1")), host=EVERYWHERE)
    transport = httpx.AsyncHTTPTransport(uds=str(gateway.settings.private_socket))

    async with httpx.AsyncClient(transport=transport, base_url="http://own") as http:
        answer = await http.post(INFER, content=b"{}")

    assert received(answer)
