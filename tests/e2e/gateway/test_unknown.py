"""Endpoints that a caller may not use answer as endpoints that do not exist."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.core.spec.access import EndpointAccess, EndpointLimitsSpec
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import EndpointRoute, EnvoyGateway, RevisionTarget, build_snapshot
from tests.e2e.gateway.issuing import Issuer, api_key, known
from tests.e2e.gateway.lab import Lab, client, endpoint, grpc_target
from tests.e2e.gateway.test_callers import EVERYWHERE, bearer
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
ISSUER: Final = Issuer()
NARROW, WIDE, ONE = api_key("narrow"), api_key("wide"), api_key("one")
UNKNOWN: Final = "none"
"""As long as every name of an endpoint here."""
CREDENTIALS: Final[dict[str, dict[str, str]]] = {
    "nothing": {},
    "a wrong key": {"x-api-key": api_key("wrong")},
    "a key of another endpoint": {"x-api-key": NARROW},
    "a bearer of another endpoint": bearer(NARROW),
    "a token of another endpoint": bearer(ISSUER.token(scope="infer:other")),
    "a token without scopes": bearer(ISSUER.token(scope="")),
    "a token that ended": bearer(ISSUER.token(exp=1)),
    "two credentials": {"x-api-key": NARROW, "authorization": f"Bearer {NARROW}"},
    "another scheme": {"authorization": "Basic eDp5"},
}
PATHS: Final = (
    *("/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/infer", "/v2/models/{}/stats"),
    *("/v2/models/{}/config", "/v2/models/{}/versions/1", "/v2/models/{}/versions/1/infer"),
    *("/v2/models/{}/versions/7/ready", "/v2/models/{}/versions/x", "/v2/models/{}?a=b"),
    *("/v2/models/{}/generate", "/v2/models/{}:predict", "/v2/models/{}/", "/v2/models/%6D{}"),
    *("/v1/models/{}", "/v1/models/{}:predict", "/v1/models/{}/metadata", "/v1/models/{}?x=1"),
    *(
        "/endpoints/{}",
        "/endpoints/{}/",
        "/endpoints/{}/v1/models",
        "/endpoints/{}/v1/chat/completions",
    ),
    *("/openai/v1/{}", "/v2/repository/models/{}/load", "/v2/{}/models"),
)


def _guarded(name: str, *any_of: str, **changes: Any) -> EndpointRoute:
    access = EndpointAccess(any_of=any_of or EndpointAccess().any_of)
    return replace(EndpointRoute(name=name, arms=(), timeout_s=9.0, access=access), **changes)


def _upstream(protocol: UpstreamProtocol) -> tuple[RevisionTarget, ...]:
    scheme = "grpc" if protocol is UpstreamProtocol.GRPC else "http"
    url = f"{scheme}://127.0.0.1:{free_port()}"
    upstream = UpstreamSpec(url=url, protocol=protocol, health_path=None)
    return (RevisionTarget(version="1", replicas=(), weight=100, upstream=upstream),)


async def _start(lab: Lab, **changes: Any) -> tuple[EnvoyGateway, list[str]]:
    arms = endpoint("any", lab.replica("1")).arms
    limits = EndpointLimitsSpec(max_body_bytes=1024)
    endpoints = (
        _guarded("keys", "key", arms=arms),
        _guarded("jwts", "jwt", arms=arms, limits=limits),
        _guarded("elso", "jwt:elsewhere", arms=arms),
        _guarded("mtls", "certificate", arms=arms),
        _guarded("http", arms=_upstream(UpstreamProtocol.HTTP)),
        _guarded("rpcs", arms=_upstream(UpstreamProtocol.GRPC)),
        _guarded("down"),
        _guarded("held", held=True, hold_s=5.0),
        replace(_guarded("open", arms=arms), access=EndpointAccess(public=True)),
    )
    policy = ISSUER.policy(
        known(NARROW, "infer:other", name="narrow"),
        known(WIDE, name="wide"),
        known(ONE, "infer:keys:1", name="one"),
    )
    gateway = EnvoyGateway(lab.settings(**changes))
    lab.gateways.append(gateway)
    await gateway.start(build_snapshot(gateway.settings, endpoints, policy))
    return gateway, [each.name for each in endpoints if each.name != "open"]


async def _http(gateway: EnvoyGateway, name: str, headers: Mapping[str, str]) -> list[object]:
    """What each path answers, without what differs from one request to the next."""
    answers: list[object] = []
    async with client(gateway) as http:
        for path in PATHS:
            for method in ("POST",) if "infer" in path or "predict" in path else ("GET",):
                body = b"x" * 2048 if method == "POST" else b""
                answer = await http.request(
                    method, path.format(name), headers=dict(headers), content=body
                )
                fields = {
                    k: v for k, v in answer.headers.items() if k not in {"date", "x-request-id"}
                }
                text = f"{fields} {answer.text}".replace(name, "NAME")
                answers.append((path, method, answer.status_code, text))
    return answers


async def _grpc(gateway: EnvoyGateway, name: str, headers: Mapping[str, str]) -> list[object]:
    requests: dict[str, Any] = {
        "ModelInfer": service_pb2.ModelInferRequest(model_name=name),
        "ModelReady": service_pb2.ModelReadyRequest(name=name),
        "ModelMetadata": service_pb2.ModelMetadataRequest(name=name, version="1"),
        "ModelConfig": service_pb2.ModelConfigRequest(name=name, version="7"),
        "ModelStatistics": service_pb2.ModelStatisticsRequest(name=name),
    }
    answers: list[object] = []
    async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        calls = {rpc: (getattr(stub, rpc), request) for rpc, request in requests.items()}
        calls["health"] = (health, b"\x0a" + bytes([len(name)]) + name.encode())
        for rpc, (call, request) in calls.items():
            metadata = tuple(headers.items())
            try:
                await call(request, metadata=metadata, timeout=10)
                answers.append((rpc, "OK"))
            except grpc.aio.AioRpcError as error:
                trailers = {k: v for k, v in error.trailing_metadata() or () if k != "x-request-id"}
                text = f"{error.details()} {trailers}".replace(name, "NAME")
                answers.append((rpc, error.code(), text.partition("'date'")[0]))
    return answers


@pytest.mark.parametrize("host", ["127.0.0.1", EVERYWHERE])
async def test_an_endpoint_that_a_caller_may_not_use_answers_as_one_that_is_not_there(
    lab: Lab, host: str
) -> None:
    gateway, names = await _start(lab, host=host)

    for shown, headers in CREDENTIALS.items():
        over_http = {name: await _http(gateway, name, headers) for name in (UNKNOWN, *names)}
        over_grpc = {name: await _grpc(gateway, name, headers) for name in (UNKNOWN, *names)}
        for name in names:
            assert over_http[name] == over_http[UNKNOWN], (shown, name)
            assert over_grpc[name] == over_grpc[UNKNOWN], (shown, name)


@pytest.mark.parametrize("host", ["127.0.0.1", EVERYWHERE])
async def test_a_listing_names_what_its_reader_may_use(lab: Lab, host: str) -> None:
    gateway, names = await _start(lab, host=host)
    everything = sorted([*names, "open"])

    async def listed(**headers: str) -> tuple[int, object]:
        async with client(gateway) as http:
            answers = [await http.get(f"/{v}/models", headers=headers) for v in ("v1", "v2")]
        assert answers[0].text == answers[1].text
        assert answers[0].headers["content-type"] == "application/json"
        return answers[0].status_code, answers[0].json().get("models")

    assert await listed() == ((200, ["open"]) if host != EVERYWHERE else (401, None))
    assert await listed(**{"x-api-key": NARROW}) == (200, ["open"])
    assert await listed(**{"x-api-key": ONE}) == (200, ["keys", "open"])
    assert await listed(**{"x-api-key": WIDE}) == (200, everything)
    assert await listed(**bearer(ISSUER.token(scope=["infer:jwts"]))) == (200, ["jwts", "open"])
    assert await listed(**{"x-api-key": api_key("wrong")}) == (401, None)


@pytest.mark.parametrize("host", ["127.0.0.1", EVERYWHERE])
async def test_statistics_of_all_endpoints_need_the_scope_for_all(lab: Lab, host: str) -> None:
    gateway, _ = await _start(lab, host=host)
    request = service_pb2.ModelStatisticsRequest()

    async def status(**headers: str) -> tuple[int, grpc.StatusCode]:
        async with client(gateway) as http:
            answer = await http.get("/v2/models/stats", headers=headers)
        async with grpc.aio.insecure_channel(grpc_target(gateway)) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                await stub.ModelStatistics(request, metadata=tuple(headers.items()), timeout=10)
            except grpc.aio.AioRpcError as error:
                return answer.status_code, error.code()
        return answer.status_code, grpc.StatusCode.OK

    assert await status() == (401, grpc.StatusCode.UNAUTHENTICATED)
    assert await status(**{"x-api-key": NARROW}) == (403, grpc.StatusCode.PERMISSION_DENIED)
    assert await status(**{"x-api-key": WIDE}) == (200, grpc.StatusCode.OK)


async def test_who_may_use_everything_is_told_what_is_not_there(lab: Lab) -> None:
    gateway, _ = await _start(lab)
    headers = {"x-api-key": WIDE}

    async with client(gateway) as http:
        unknown = await http.get(f"/v2/models/{UNKNOWN}", headers=headers)
        another = await http.get("/v2/models/jwts", headers=headers)
        opened = await http.get("/v2/models/open")

    assert (unknown.status_code, another.status_code, opened.status_code) == (404, 401, 200)
    assert "is not how callers show here who they are" in another.json()["error"]
