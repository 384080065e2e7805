"""Callers' connections are encrypted, and a new certificate disturbs nobody."""

import asyncio
import contextlib
import json
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient as TritonGrpc
from tritonclient.grpc import InferInput as GrpcInput
from tritonclient.http import InferenceServerClient as TritonHttp

from headrace.cli.base.management import Management
from headrace.client import NO_RETRIES, AsyncClient, Client, UntrustedServerError
from headrace.control import start_detached
from headrace.core import FailedPreconditionError, HeadraceError, UnauthenticatedError
from headrace.core.spec.access import TlsSpec
from headrace.gateway import EnvoyGateway, ListenerTls, build_snapshot, make_private
from headrace.gateway.binary import arguments, find_envoy
from headrace.gateway.bootstrap import bootstrap
from headrace.gateway.tls import CERTIFICATE, certificate_secret
from headrace.testing import models
from tests.certificates import Authority, Files, now
from tests.e2e.control.system import ROW, System
from tests.e2e.gateway.lab import Lab, endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROWS = {"input": np.full((1, 32), 0.5, np.float32)}
IN_FORCE_S = 1.0


@dataclass(frozen=True)
class Secure:
    """A system that serves `m`, and who signs for it."""

    system: System
    authority: Authority
    files: Files

    @property
    def port(self) -> int:
        return int(self.system.where().http_url.rpartition(":")[2])

    @property
    def grpc_port(self) -> int:
        return int(self.system.where().grpc_target.rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def api(self) -> Management:
        return Management(self.system.where().admin_url, token=self.system.token())

    def certificate(self) -> dict[str, Any]:
        """What the status says of the gateway's certificate."""
        found = self.api().get("/api/v1/status")["gateway"]["certificates"]
        only: dict[str, Any] = next(one for one in found if one["name"] == CERTIFICATE)
        return only

    def names(self) -> set[str]:
        """Whom the certificate is for that a new connection is shown."""
        return names_at(self.port, self.authority.ca)

    def context(self, client: Files | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority.ca)
        if client is not None:
            context.load_cert_chain(*client.both)
        return context

    def status_for(self, client: Files | None = None) -> int:
        """The HTTP status that a caller gets; 0 if it cannot connect."""
        try:
            return httpx.get(f"{self.url}/v2/models/m", verify=self.context(client)).status_code
        except httpx.NetworkError:
            return 0


def names_at(port: int, ca: Path) -> set[str]:
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain) as secure,
    ):
        certificate = secure.getpeercert() or {}
    names: Any = certificate.get("subjectAltName", ())
    return {name for _, name in names}


@contextlib.contextmanager
def serving(
    *,
    clients: bool = False,
    required: bool = False,
    names: tuple[str, ...] = (),
    encrypted: bool = True,
) -> Iterator[Secure]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        authority = Authority(folder / "certs")
        files = authority.server("server", "localhost", "127.0.0.1", *names)
        model = folder / "m.onnx"
        model.write_bytes(models.mlp())
        system = System(folder / "home")
        tls = TlsSpec(
            certificate_file=str(files.certificate),
            key_file=str(files.key),
            client_ca_file=str(authority.ca) if clients else "",
            require_client_certificate=required,
        )
        try:
            system.start({"name": "m", "model": str(model)}, tls=tls if encrypted else None)
            system.wait_ready()
            yield Secure(system, authority, files)
        finally:
            system.close()


@pytest.fixture(scope="module")
def secure() -> Iterator[Secure]:
    with serving(clients=True) as secure:
        yield secure


def until(condition: Callable[[], bool], within_s: float = 10.0) -> float:
    """How long it takes until `condition` holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, "it does not come true"
        time.sleep(0.02)
    return time.monotonic() - began


def test_http_1_http_2_and_grpc_share_one_port(secure: Secure) -> None:
    ca = secure.authority.ca
    versions = []
    for is_2 in (False, True):
        with httpx.Client(http1=not is_2, http2=is_2, verify=secure.context()) as http:
            answer = http.post(f"{secure.url}/v2/models/m/infer", json=ROW)
            versions.append((answer.http_version, answer.status_code))
    answers = []
    for url in (
        secure.url,
        f"grpcs://localhost:{secure.port}",
        f"grpcs://localhost:{secure.grpc_port}",
    ):
        with Client(url, ca_file=ca) as client:
            answers.append(client.infer("m", ROWS).model_name)

    assert versions == [("HTTP/1.1", 200), ("HTTP/2", 200)]
    assert answers == ["m", "m", "m"]


def test_tritons_clients_speak_to_it(secure: Secure) -> None:
    ca = str(secure.authority.ca)
    over_grpc = TritonGrpc(f"localhost:{secure.grpc_port}", ssl=True, root_certificates=ca)
    tensor = GrpcInput("input", [1, 32], "FP32")
    tensor.set_data_from_numpy(ROWS["input"])
    answer = over_grpc.infer("m", [tensor]).as_numpy("prob")
    over_grpc.close()
    over_http = TritonHttp(
        f"localhost:{secure.port}", ssl=True, ssl_options={"ca_certs": ca}, ssl_context_factory=None
    )
    is_ready = over_http.is_model_ready("m")
    over_http.close()

    assert answer.shape == (1, 2)
    assert is_ready


@pytest.mark.anyio
async def test_the_asynchronous_client_speaks_to_it(secure: Secure) -> None:
    for url in (secure.url, f"grpcs://localhost:{secure.port}"):
        async with AsyncClient(url, ca_file=secure.authority.ca) as client:
            assert (await client.infer("m", ROWS)).model_name == "m"


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_client_trusts_neither_another_authority_nor_another_name(
    secure: Secure, tmp_path: Path, scheme: str
) -> None:
    other = Authority(tmp_path)
    url = f"{scheme}://127.0.0.1:{secure.port}"
    named = {"ca_file": secure.authority.ca, "retry": NO_RETRIES, "timeout_s": 5.0}
    for wrong in (
        {**named, "ca_file": other.ca},
        {**named, "server_name": "elsewhere.example"},
    ):
        with Client(url, **wrong) as client, pytest.raises(UntrustedServerError):  # type: ignore[arg-type]  # of many kinds
            client.infer("m", ROWS)
    with Client(url, **named, server_name="localhost") as client:  # type: ignore[arg-type]  # as above
        assert client.infer("m", ROWS).model_name == "m"


@pytest.mark.parametrize(
    ("version", "ciphers", "is_taken"),
    [
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", True),
        (ssl.TLSVersion.TLSv1_3, "DEFAULT", True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_versions_and_weak_ciphers_are_refused(
    secure: Secure, version: ssl.TLSVersion, ciphers: str, is_taken: bool
) -> None:
    context = secure.context()
    context.set_ciphers(ciphers)
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("localhost", secure.port), timeout=5) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as found:
                was_taken = found.version() == f"TLSv1.{version.name[-1]}"
        except ssl.SSLError:
            was_taken = False

    assert was_taken == is_taken


def test_plain_text_is_not_answered(secure: Secure) -> None:
    with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
        httpx.get(f"http://localhost:{secure.port}/v2/health/ready")


@pytest.mark.long
def test_whoever_connects_and_says_nothing_is_let_go(secure: Secure) -> None:
    with socket.create_connection(("localhost", secure.port), timeout=20) as plain:
        began = time.monotonic()
        said = plain.recv(1)
        took_s = time.monotonic() - began

    assert said == b""
    assert 5 < took_s < 15


def test_a_client_certificate_is_optional_but_has_to_be_good(
    secure: Secure, tmp_path: Path
) -> None:
    day_s = 86_400.0
    good = secure.authority.client("app")
    expired = secure.authority.client("old", days=1, at=now() - 3 * day_s)
    foreign = Authority(tmp_path).client("stranger")
    no_client = secure.authority.server("not-a-client")

    found = [secure.status_for(one) for one in (None, good, expired, foreign, no_client)]

    assert found == [200, 200, 0, 0, 0]


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_client_says_that_its_certificate_was_refused(
    secure: Secure, tmp_path: Path, scheme: str
) -> None:
    stranger = Authority(tmp_path).client("stranger")
    client = Client(
        f"{scheme}://localhost:{secure.port}",
        ca_file=secure.authority.ca,
        client_certificate=stranger.both,
        retry=NO_RETRIES,
        timeout_s=5.0,
    )
    with client, pytest.raises(HeadraceError) as caught:
        client.infer("m", ROWS)

    if scheme == "https":
        assert isinstance(caught.value, UnauthenticatedError)


def test_without_a_required_certificate_nobody_connects() -> None:
    with serving(clients=True, required=True) as secure:
        good = secure.authority.client("app")
        # The control plane itself got in, or the system were not ready.
        assert [secure.status_for(one) for one in (None, good)] == [0, 200]
        with Client(
            f"grpcs://localhost:{secure.port}",
            ca_file=secure.authority.ca,
            client_certificate=good.both,
        ) as client:
            assert client.infer("m", ROWS).model_name == "m"

        other = Authority(secure.authority.directory, name="other")
        newcomer = other.client("newcomer")
        other.ca.replace(secure.authority.ca.with_suffix(".swap"))
        server_ca = secure.authority.directory / "server-ca.pem"
        server_ca.write_bytes(secure.authority.ca.read_bytes())
        secure.authority.ca.with_suffix(".swap").replace(secure.authority.ca)

        def status_for(client: Files) -> int:
            context = ssl.create_default_context(cafile=server_ca)
            context.load_cert_chain(*client.both)
            with contextlib.suppress(httpx.NetworkError):
                return httpx.get(f"{secure.url}/v2/models/m", verify=context).status_code
            return 0

        took_s = until(lambda: status_for(newcomer) == 200)
        assert took_s < IN_FORCE_S
        assert status_for(good) == 0


class _Callers:
    """One connection each by HTTP/1.1, HTTP/2 and gRPC, asked again and again."""

    def __init__(self, secure: Secure) -> None:
        self._secure = secure
        self._until = asyncio.Event()
        self.answers = {"HTTP/1.1": 0, "HTTP/2": 0, "gRPC": 0}
        self.failures: list[str] = []
        self.connections: set[tuple[str, object]] = set()

    async def run(self) -> None:
        await asyncio.gather(self._http(is_2=False), self._http(is_2=True), self._grpc())

    def stop(self) -> None:
        self._until.set()

    async def _http(self, *, is_2: bool) -> None:
        context = self._secure.context()
        async with httpx.AsyncClient(http1=not is_2, http2=is_2, verify=context) as http:
            while not self._until.is_set():
                answer = await http.post(f"{self._secure.url}/v2/models/m/infer", json=ROW)
                stream = answer.extensions["network_stream"]
                self.connections.add((answer.http_version, stream.get_extra_info("client_addr")))
                self._count(answer.http_version, str(answer.status_code), is_ok=answer.is_success)

    async def _grpc(self) -> None:
        credentials = grpc.ssl_channel_credentials(self._secure.authority.ca.read_bytes())
        where = f"localhost:{self._secure.port}"
        async with grpc.aio.secure_channel(where, credentials) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            await live(b"")
            while not self._until.is_set():
                try:
                    await live(b"")
                except grpc.RpcError as error:
                    self._count("gRPC", str(error), is_ok=False)
                else:
                    self._count("gRPC", "", is_ok=True)
                state = str(channel.get_state())
                self.connections.add(("gRPC", state))

    def _count(self, kind: str, said: str, *, is_ok: bool) -> None:
        self.answers[kind] += 1
        if not is_ok:
            self.failures.append(f"{kind}: {said}")


def _is_shown(secure: Secure, name: str) -> bool:
    return name in secure.names()


@pytest.mark.anyio
async def test_a_certificate_is_replaced_under_load_and_no_connection_ends() -> None:
    with serving() as secure:
        callers = _Callers(secure)
        load = asyncio.create_task(callers.run())
        took_s = []
        for turn in range(5):
            name = f"turn-{turn}.example"
            await asyncio.sleep(0.3)
            new = secure.authority.server("new", "localhost", "127.0.0.1", name)
            secure.files.replace_by(new)
            took_s.append(await asyncio.to_thread(until, partial(_is_shown, secure, name)))
        await asyncio.sleep(0.3)
        callers.stop()
        await load
        status = await asyncio.to_thread(secure.certificate)
        events = (await asyncio.to_thread(secure.api().get, "/api/v1/events"))["events"]

    assert callers.failures == []
    assert all(count > 20 for count in callers.answers.values()), callers.answers
    assert len(callers.connections) == 3, callers.connections
    assert max(took_s) < IN_FORCE_S, took_s
    assert "turn-4.example" in status["names"]
    assert status["days_left"] == pytest.approx(10, abs=0.1)
    assert [event["reason"] for event in events].count("CertificateReplaced") == 5


@pytest.mark.long
def test_a_kubernetes_secret_is_swapped() -> None:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        authority = Authority(folder / "certs")
        mount = folder / "mount"
        pair = authority.server("tls")
        for turn in ("one", "two"):
            pair = authority.server("tls", "localhost", "127.0.0.1", f"{turn}.example")
            (mount / turn).mkdir(parents=True)
            for file in pair.both:
                file.rename(mount / turn / file.name)
        (mount / "..data").symlink_to("one")
        for file in pair.both:
            (mount / file.name).symlink_to(Path("..data") / file.name)
        model = folder / "m.onnx"
        model.write_bytes(models.mlp())
        system = System(folder / "home")
        tls = TlsSpec(certificate_file=str(mount / "tls.pem"), key_file=str(mount / "tls-key.pem"))
        try:
            system.start({"name": "m", "model": str(model)}, tls=tls)
            system.wait_ready()
            port = int(system.where().http_url.rpartition(":")[2])
            before = names_at(port, authority.ca)
            (mount / "..data_tmp").symlink_to("two")
            (mount / "..data_tmp").rename(mount / "..data")
            took_s = until(lambda: "two.example" in names_at(port, authority.ca))
        finally:
            system.close()

    assert "one.example" in before
    assert took_s < IN_FORCE_S


@pytest.mark.long
def test_a_broken_pair_leaves_the_one_before_and_says_so(secure: Secure) -> None:
    before = secure.names()
    kept = secure.files.certificate.read_bytes()
    stranger = secure.authority.server("stranger", "localhost", "stranger.example")
    try:
        secure.files.certificate.write_bytes(stranger.certificate.read_bytes())
        until(lambda: "does not match the certificate" in secure.certificate()["problem"])
        until(
            lambda: (
                "CertificateRefused"
                in [one["reason"] for one in secure.api().get("/api/v1/events")["events"]]
            )
        )
        assert secure.names() == before
    finally:
        secure.files.certificate.write_bytes(kept)
    until(lambda: secure.certificate()["problem"] == "")

    metrics = httpx.get(secure.system.where().metrics_url).text
    assert 'headrace_control_certificate_refused{certificate="gateway"} 0' in metrics
    assert 'headrace_control_certificate_left_seconds{certificate="gateway"} 8' in metrics


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("mode", "chmod 600"),
        pytest.param("expired", "expired", marks=pytest.mark.long),
        pytest.param("missing", "cannot read", marks=pytest.mark.long),
        pytest.param("pair", "does not match", marks=pytest.mark.long),
    ],
)
def test_nothing_starts_with_a_certificate_that_is_no_good(
    system: System, tmp_path: Path, fault: str, said: str
) -> None:
    authority = Authority(tmp_path)
    files = authority.server("s", days=1, at=now() - (2 * 86_400.0 if fault == "expired" else 0))
    match fault:
        case "mode":
            files.key.chmod(0o644)
        case "missing":
            files.certificate.unlink()
        case "pair":
            files.key.write_bytes(authority.server("t").key.read_bytes())
    tls = TlsSpec(certificate_file=str(files.certificate), key_file=str(files.key))

    with pytest.raises(FailedPreconditionError, match=said):
        start_detached(system.settings(tls=tls), timeout_s=30.0)


@pytest.mark.long
def test_the_key_is_in_no_file_that_others_may_read_and_goes_with_the_gateway() -> None:
    with serving() as secure:
        home = secure.system.home
        secret = secure.files.key.read_text().splitlines()[1].encode()
        holding = {
            path: path.stat().st_mode & 0o777
            for path in home.rglob("*")
            if path.is_file() and secret in path.read_bytes()
        }
        secure.system.end_control()
        left = [path for path in home.rglob("*") if path.is_file() and secret in path.read_bytes()]

    # The gateway's group may read it where the gateway runs as another user.
    assert [(path.name, mode & 0o007) for path, mode in holding.items()] == [
        ("sds-gateway.json", 0)
    ]
    assert left == []


@pytest.mark.long
def test_a_dead_control_plane_takes_no_certificate_along() -> None:
    with serving() as secure:
        pid = secure.system.status()["gateway"]["pid"]
        url, context = secure.url, secure.context()
        secure.system.kill_control()
        assert httpx.get(f"{url}/v2/models/m", verify=context).status_code == 200
        new = secure.authority.server("new", "localhost", "127.0.0.1", "later.example")
        secure.files.replace_by(new)
        tls = TlsSpec(
            certificate_file=str(secure.files.certificate), key_file=str(secure.files.key)
        )
        secure.system.start(tls=tls)
        status = secure.system.wait_ready()

        assert status["gateway"]["pid"] == pid
        assert "later.example" in secure.names()


@pytest.mark.long
def test_a_control_plane_that_finds_a_broken_pair_goes_on_with_what_is_in_force() -> None:
    with serving() as secure:
        before = secure.names()
        kept = secure.files.certificate.read_bytes()
        secure.system.kill_control()
        secure.files.certificate.write_text("hello")
        tls = TlsSpec(
            certificate_file=str(secure.files.certificate), key_file=str(secure.files.key)
        )
        secure.system.start(tls=tls)
        secure.system.wait_ready()
        problem = secure.certificate()["problem"]
        served = secure.names()
        secure.files.certificate.write_bytes(kept)
        until(lambda: secure.certificate()["problem"] == "")

    assert "no PEM certificate" in problem
    assert served == before


@pytest.mark.long
def test_encryption_is_turned_on_without_a_new_gateway_and_outlives_the_control_plane() -> None:
    with serving(encrypted=False) as secure:
        seen = [secure.system.status()]
        tls = TlsSpec(
            certificate_file=str(secure.files.certificate), key_file=str(secure.files.key)
        )
        for given in (tls, None):
            secure.system.kill_control()
            secure.system.start(tls=given)
            seen.append(secure.system.wait_ready())
            until(lambda: secure.status_for() == 200)

    schemes = [status["addresses"]["http"].partition(":")[0] for status in seen]
    assert schemes == ["http", "https", "https"]
    assert len({status["gateway"]["pid"] for status in seen}) == 1


@pytest.mark.long
@pytest.mark.anyio
async def test_whom_a_certificate_names_is_said_by_no_header_and_no_dump_shows_the_key(
    lab: Lab, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    files = authority.server("s")
    replica = lab.replica("r")
    settings = lab.settings(tls=ListenerTls())
    settings.run_dir.parent.mkdir(parents=True, exist_ok=True)
    make_private(settings.run_dir)
    gateway = EnvoyGateway(settings)
    lab.gateways.append(gateway)
    gateway.secrets.write(
        certificate_secret(
            CERTIFICATE, chain=files.certificate.read_text(), key=files.key.read_text()
        )
    )
    await gateway.start(build_snapshot(settings, [endpoint("m", replica)]))
    context = ssl.create_default_context(cafile=authority.ca)
    async with httpx.AsyncClient(verify=context) as http:
        url = f"https://localhost:{settings.http_port}/v2/models/m"
        await http.get(url, headers={"x-forwarded-client-cert": "By=a;URI=spiffe://root"})
    (seen,) = replica.seen()
    await gateway.stop(0.0)
    dump = await _config_dump(lab, settings)

    assert "x-forwarded-client-cert" not in seen["headers"]
    secret = files.key.read_text().splitlines()[1]
    assert "sds-gateway.json" in dump
    assert secret not in dump
    assert "PRIVATE KEY" not in dump


async def _config_dump(lab: Lab, settings: Any) -> str:
    """All that Envoy would tell of its configuration, if our admin socket let anybody ask."""
    document = json.loads(json.dumps(bootstrap(settings)))
    document["admin"]["allow_paths"].append({"prefix": "/config_dump"})
    config = lab.directory / "open.json"
    config.write_text(json.dumps(document))
    process = await asyncio.create_subprocess_exec(
        *arguments(settings, find_envoy(settings), config, 1),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(settings.admin_socket), retries=50)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as http:
            for _ in range(200):
                with contextlib.suppress(httpx.TransportError):
                    found = await http.get("/config_dump?include_eds")
                    if "dynamic_active_secrets" in found.text:
                        return found.text
                await asyncio.sleep(0.05)
    finally:
        process.kill()
        await process.wait()
    raise AssertionError("Envoy does not come up")


def test_a_spec_with_files_that_cannot_be_used_is_refused(system: System, tmp_path: Path) -> None:
    upstream = {"url": "http://127.0.0.1:9", "health_path": None}
    spec: dict[str, Any] = {"version": 1, "endpoints": [{"name": "m", "upstream": upstream}]}
    system.start(spec=spec)
    system.wait_for(lambda status: status["gateway"]["ready"])
    files = Authority(tmp_path / "pki").server("server")
    files.certificate.write_text("pl4nted-s3cret")
    tls = {"certificate_file": str(files.certificate), "key_file": str(files.key)}
    url = f"{system.where().admin_url}/api/v1/apply"

    status, problem = system.call(
        "POST", url, {**spec, "gateway": {"tls": tls}}, token=system.token()
    )

    assert status == 400
    assert "gateway.tls.certificate_file: the gateway's certificate" in problem["detail"]
    assert "contains no PEM certificate" in problem["detail"]
    assert "pl4nted" not in str(problem)
    assert (system.get("/api/v1/spec")["spec"].get("gateway") or {}).get("tls") is None
