"""Who is let in, as whom, and what those are told who are not."""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.core import SystemClock
from headrace.core.spec.access import CertificateSpec, EndpointAccess, JwtSpec
from headrace.gateway import EndpointRoute, EnvoyGateway, GatewayPolicy, build_snapshot
from headrace.gateway.settings import ListenerTls
from headrace.gateway.tls import (
    CERTIFICATE,
    CLIENT_AUTHORITIES,
    authorities_secret,
    certificate_secret,
)
from tests.certificates import Authority
from tests.e2e.gateway.issuing import ALGORITHMS, PROVIDER, Issuer, api_key, known
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
    return EndpointRoute(name=name, arms=found.arms, timeout_s=found.timeout_s, access=access)


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


async def test_a_key_lets_its_holder_in_and_stays_at_the_gateway(lab: Lab) -> None:
    policy = ISSUER.policy(known(KEY, tier="gold"))
    gateway = await start(lab, policy, guarded(lab.replica("1")))

    for headers in ({"x-api-key": KEY}, bearer(KEY)):
        for _ in range(2):
            got = received(await ask(gateway, headers))
            assert got["x-headrace-caller"] == "robot"
            assert got["x-headrace-credential"] == "key:robot"
            assert got["x-headrace-tier"] == "gold"
            assert not {"authorization", "x-api-key"} & set(got)
        assert await call(gateway, headers) == (grpc.StatusCode.OK, "")


async def test_a_token_lets_its_subject_in(lab: Lab) -> None:
    gateway = await start(lab, ISSUER.policy(), guarded(lab.replica("1")))

    for algorithm in ALGORITHMS:
        token = ISSUER.token(algorithm=algorithm, tier="gold", scope=["infer:m"])
        for _ in range(2):
            got = received(await ask(gateway, bearer(token)))
            assert got["x-headrace-caller"] == "corp/alice", algorithm
            assert got["x-headrace-credential"] == "jwt:corp"
            assert got["x-headrace-tier"] == "gold"
            assert "authorization" not in got
        assert await call(gateway, bearer(token)) == (grpc.StatusCode.OK, ""), algorithm


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
    guard = EndpointRoute(name="m", arms=found.arms, access=EndpointAccess())
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
        for path in (
            "/v2",
            "/v2/models",
            "/v1/models",
            "/v2/models/stats",
            "/v2/",
            "/v2/repository",
        ):
            assert (await http.get(path)).status_code == 401, path
        for path in ("/v2/health/live", "/v2/health/ready", "/"):
            assert (await http.get(path)).status_code == 200, path
        listing = await http.get("/v2/models", headers={"x-api-key": KEY})
        unknown = await http.get("/v2/models/none", headers={"x-api-key": KEY})
    assert listing.json() == {"models": ["m"]}
    assert unknown.status_code == 403


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


RULES = (
    CertificateSpec(name="team", uri="spiffe://corp/team-a/*", scopes=("infer:m",), tier="gold"),
    CertificateSpec(name="hosts", dns="*.jobs.example", scopes=("infer:m",)),
    CertificateSpec(name="narrow", dns="narrow.example", scopes=("infer:other",)),
    CertificateSpec(name="named", common_name="legacy", scopes=("infer:*",)),
)


@pytest.fixture
def authority(lab: Lab) -> Authority:
    return Authority(lab.directory / "certs")


async def _with_tls(lab: Lab, authority: Authority, route: EndpointRoute) -> EnvoyGateway:
    settings = lab.settings(tls=ListenerTls(takes_clients=True))
    gateway = EnvoyGateway(settings)
    lab.gateways.append(gateway)
    settings.run_dir.mkdir(mode=0o700)
    server = authority.server("server")
    chain, key = server.certificate.read_text(), server.key.read_text()
    gateway.secrets.write(certificate_secret(CERTIFICATE, chain=chain, key=key))
    gateway.secrets.write(authorities_secret(CLIENT_AUTHORITIES, authority.ca.read_text()))
    policy = ISSUER.policy(known(KEY), certificates=RULES)
    await gateway.start(build_snapshot(settings, [route], policy))
    return gateway


async def _by_tls(
    gateway: EnvoyGateway,
    authority: Authority,
    client_name: str = "",
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    context = ssl.create_default_context(cafile=str(authority.ca))
    if client_name:
        files = authority.client(client_name)
        context.load_cert_chain(files.certificate, files.key)
    url = f"https://localhost:{gateway.settings.http_port}{INFER}"
    async with httpx.AsyncClient(verify=context) as http:
        return await http.post(url, headers=dict(headers or {}), content=b"{}")


def _grpc_by_tls(gateway: EnvoyGateway, authority: Authority, name: str) -> grpc.StatusCode:
    files = authority.client(name)
    credentials = grpc.ssl_channel_credentials(
        authority.ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )
    request = service_pb2.ModelInferRequest(model_name="m")
    target = f"localhost:{gateway.settings.grpc_port}"
    with grpc.secure_channel(target, credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            stub.ModelInfer(request, timeout=10)
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call):
                raise
            return error.code()
    return grpc.StatusCode.OK


async def test_a_certificate_names_its_holder(lab: Lab, authority: Authority) -> None:
    gateway = await _with_tls(lab, authority, guarded(lab.replica("1")))

    for name, caller, label in (
        ("spiffe://corp/team-a/x%2Fy", "team/spiffe://corp/team-a/x%252Fy", "certificate:team"),
        ("night.jobs.example", "hosts/night.jobs.example", "certificate:hosts"),
        ("NIGHT.jobs.example", "hosts/night.jobs.example", "certificate:hosts"),
        ("legacy", "named/legacy", "certificate:named"),
    ):
        got = received(await _by_tls(gateway, authority, name))
        assert (got["x-headrace-caller"], got["x-headrace-credential"]) == (caller, label)
        assert ("x-headrace-tier" in got) == (label == "certificate:team")
        assert _grpc_by_tls(gateway, authority, name) is grpc.StatusCode.OK


async def test_a_certificate_that_no_rule_names_is_nobodys(lab: Lab, authority: Authority) -> None:
    gateway = await _with_tls(lab, authority, guarded(lab.replica("1")))
    stranger = Authority(lab.directory / "other", name="other")

    for name in ("", "jobs.example", "evil-jobs.example", "spiffe://corp/team-b/x", "legacy2"):
        assert (await _by_tls(gateway, authority, name)).status_code == 401, name
    assert (await _by_tls(gateway, authority, "narrow.example")).status_code == 403
    assert _grpc_by_tls(gateway, authority, "legacy2") is grpc.StatusCode.UNAUTHENTICATED
    assert _grpc_by_tls(gateway, authority, "narrow.example") is grpc.StatusCode.PERMISSION_DENIED
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(*stranger.client("legacy").both)
    async with httpx.AsyncClient(verify=context) as http:
        # The refusal comes after the handshake, where not every error is mapped.
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await http.post(f"https://localhost:{gateway.settings.http_port}{INFER}")


async def test_a_certificate_does_not_make_up_for_a_wrong_key(
    lab: Lab, authority: Authority
) -> None:
    """Whoever shows a credential means it: a revoked one has to be seen to be refused."""
    gateway = await _with_tls(lab, authority, guarded(lab.replica("1")))

    wrong = await _by_tls(gateway, authority, "legacy", {"x-api-key": api_key("none")})
    good = received(await _by_tls(gateway, authority, "legacy", {"x-api-key": KEY}))

    assert wrong.status_code == 401
    assert good["x-headrace-credential"] == "key:robot"


async def test_where_only_certificates_count_headers_do_not(lab: Lab, authority: Authority) -> None:
    gateway = await _with_tls(lab, authority, guarded(lab.replica("1"), "certificate"))
    headers = {"authorization": "Basic somebody-elses"}

    assert received(await _by_tls(gateway, authority, "legacy", headers))
    assert (await _by_tls(gateway, authority, "", {"x-api-key": KEY})).status_code == 401


@dataclass
class KeyServer:
    """Serves a set of keys over HTTP, as an identity provider does."""

    text: str
    asked: int = 0
    _server: asyncio.Server | None = None

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/keys?tenant=1"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked += head.startswith(b"GET /keys?tenant=1 ")
        body = self.text.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


async def _until(gateway: EnvoyGateway, token: str, status: int) -> None:
    deadline = time.monotonic() + 10
    while (await ask(gateway, bearer(token))).status_code != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def _fetched(url: str) -> JwtSpec:
    return msgspec.structs.replace(PROVIDER, jwks_url=url, jwks_file="", jwks_cache_s=1.0)


@pytest.mark.long
async def test_a_providers_keys_are_fetched_again_and_old_ones_forgotten(lab: Lab) -> None:
    successor = Issuer()
    server = KeyServer(ISSUER.key_set)
    policy = ISSUER.policy(jwt=(_fetched(await server.open()),))
    route = guarded(lab.replica("1"))
    gateway = await start(lab, policy, route)
    old, new = ISSUER.token(), successor.token()

    await _until(gateway, old, 200)
    assert (await ask(gateway, bearer(new))).status_code == 401
    server.text = successor.key_set
    await _until(gateway, new, 200)
    await _until(gateway, old, 401)
    assert (await ask(gateway, bearer(new))).status_code == 200
    await server.close()


@pytest.mark.long
async def test_good_tokens_are_taken_while_the_gateway_forgets_what_it_remembers(
    lab: Lab,
) -> None:
    route = guarded(lab.replica("1"))
    policy = ISSUER.policy()
    gateway = await start(lab, policy, route)
    token = ISSUER.token()
    statuses: list[int] = []

    async def call_on() -> None:
        async with client(gateway) as http:
            while True:
                answer = await http.post(INFER, headers=bearer(token), content=b"{}")
                statuses.append(answer.status_code)

    callers = [asyncio.create_task(call_on()) for _ in range(4)]
    for i in range(10):
        told = replace(policy, key_sets={"corp": ISSUER.key_set + " " * i})
        await gateway.publish(build_snapshot(gateway.settings, [route], told))
        await asyncio.sleep(0.1)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)

    assert len(statuses) > 20
    assert set(statuses) == {200}


async def test_a_key_that_is_gone_from_a_file_verifies_nothing_from_then_on(lab: Lab) -> None:
    route, policy, successor = guarded(lab.replica("1")), ISSUER.policy(), Issuer()
    gateway = await start(lab, policy, route)
    old, new = ISSUER.token(), successor.token()
    assert [(await ask(gateway, bearer(token))).status_code for token in (old, new)] == [200, 401]

    told = replace(policy, key_sets={"corp": successor.key_set})
    await gateway.publish(build_snapshot(gateway.settings, [route], told))

    assert [(await ask(gateway, bearer(token))).status_code for token in (old, new)] == [401, 200]


async def test_a_provider_that_does_not_answer_refuses_its_tokens_only(lab: Lab) -> None:
    provider = _fetched("http://127.0.0.1:1/keys")
    policy = ISSUER.policy(known(KEY), jwt=(provider,))
    gateway = await start(lab, policy, guarded(lab.replica("1")))

    assert (await ask(gateway, bearer(ISSUER.token()))).status_code == 401
    assert received(await ask(gateway, {"x-api-key": KEY}))


async def test_the_access_log_says_who_called_by_what(lab: Lab) -> None:
    gateway = await start(lab, ISSUER.policy(known(KEY)), guarded(lab.replica("1")))
    token = ISSUER.token()
    await ask(gateway, {"x-api-key": KEY})
    await ask(gateway, bearer(token))
    await ask(gateway)

    deadline = time.monotonic() + 10
    while len(lines := gateway.access_log_path.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)

    found = [json.loads(line) for line in lines]
    assert [(one["caller"], one["credential"]) for one in found] == [
        ("robot", "key:robot"),
        ("corp/alice", "jwt:corp"),
        (None, None),
    ]
    assert not any(secret in line for line in lines for secret in (KEY, token))
