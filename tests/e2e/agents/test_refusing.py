"""Who may not come, what is not believed, and what a gateway cannot serve."""

import asyncio
import contextlib
import hashlib
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pytest

from headrace.control.agents.messages import (
    PROTOCOL,
    AgentInstructions,
    AgentStatus,
    Bundle,
    GatewayOptions,
    Poll,
    with_version,
)
from headrace.control.agents.tls import MutualTls, client_context
from headrace.control.gateway.certificates import Certificates
from headrace.control.local.sandbox import Sandbox
from headrace.core import (
    HeadraceError,
    PermissionDeniedError,
    SystemClock,
    UnavailableError,
)
from headrace.core.spec.access import AccessSettings, JwtSpec, TlsSpec
from headrace.core.spec.observe import RequestLogSpec
from headrace.core.spec.scale import ConnectionsSpec
from headrace.gateway import EndpointRoute, GatewayPolicy, RevisionTarget, make_private
from headrace.gateway_agent.applier import Applier, BundleStore
from headrace.gateway_agent.client import ControlClient
from headrace.gateway_agent.settings import AgentSettings
from tests.certificates import Authority, Files
from tests.e2e.agents.lab import Agent, Lab, free_ports
from tests.e2e.agents.test_following import add, endpoint, up
from tests.e2e.rollouts.callers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def context_of(files: Files, ca: Path) -> ssl.SSLContext:
    context = client_context()
    context.load_verify_locations(cafile=str(ca))
    context.load_cert_chain(str(files.certificate), str(files.key))
    return context


POLL = Poll(protocol=PROTOCOL, agent="test", wait_s=0.0)


def report(name: str, **more: object) -> AgentStatus:
    return AgentStatus(protocol=PROTOCOL, agent="test", name=name, **more)  # type: ignore[arg-type]  # as a Report has them


async def test_only_certificates_of_the_authority_come_in_and_each_for_itself(lab: Lab) -> None:
    lab.start(endpoint(lab.root / "m.onnx", "m"))
    lab.system.wait_for(lambda status: bool(status["gateway"]))
    stranger = Authority(lab.root / "stranger")
    mine = lab.authority.client("gw-1")

    async def says(
        files: Files, message: Poll | AgentStatus, ca: Path = lab.authority.ca
    ) -> AgentInstructions | None:
        client = ControlClient(lab.url, context_of(files, ca))
        try:
            if isinstance(message, Poll):
                return await client.poll(message)
            await client.report(message)
        finally:
            await client.close()
        return None

    told = await says(mine, POLL)
    assert told is not None
    with pytest.raises(UnavailableError):
        await says(stranger.client("gw-1"), POLL)
    with pytest.raises(UnavailableError, match="certificate verify failed"):
        await says(mine, POLL, stranger.ca)
    with pytest.raises(PermissionDeniedError, match="for 'gw-1', which may not report for 'gw-2'"):
        await says(mine, report("gw-2"))
    await says(mine, report("gw-1/pod-a"))
    with pytest.raises(UnavailableError, match=f"speaks protocol 99, and this side {PROTOCOL}"):
        await says(mine, Poll(protocol=99, agent="9.9.9"))
    assert set(lab.gateways()) == {"gw-1/pod-a"}


async def test_a_revoked_certificate_is_out_at_once_and_the_next_one_is_in(lab: Lab) -> None:
    revoked = lab.root / "revoked"
    revoked.write_text("# nobody yet\n")
    lab.start(endpoint(lab.root / "m.onnx", "m"), revoked_file=str(revoked))
    lab.system.wait_for(lambda status: bool(status["gateway"]))
    files = lab.authority.client("gw-1")
    lost, mine = (
        ControlClient(lab.url, context_of(one, lab.authority.ca))
        for one in (files, lab.authority.client("gw-2"))
    )
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(lost.close)
        opened.push_async_callback(mine.close)
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:
            waiting = group.create_task(_refusal(_poll_on(lost)))
            await asyncio.sleep(0.5)
            der = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
            fingerprint = hashlib.sha256(der).hexdigest()
            revoked.write_text(f"sha256 Fingerprint={fingerprint.upper()}\n")

        assert fingerprint in waiting.result()
        assert "was revoked" in await _refusal(lost.report(report("gw-1")))
        await mine.report(report("gw-2"))
    assert set(lab.gateways()) == {"gw-2"}


async def _poll_on(client: ControlClient) -> None:
    """As an agent asks: each question waits long for what is newer."""
    told = await client.poll(POLL)
    held = ""
    while True:
        held = told.bundle.version if told.bundle else held
        poll = msgspec.structs.replace(POLL, held=held, request_number=told.ask, wait_s=25.0)
        told = await client.poll(poll)


async def _refusal(asked: Coroutine[object, object, object]) -> str:
    with pytest.raises(PermissionDeniedError) as refused:
        await asked
    return str(refused.value)


async def test_a_refused_version_names_its_gateway_and_why(lab: Lab) -> None:
    m = endpoint(lab.root / "m.onnx", "m")
    agents = await asyncio.to_thread(up, lab, m)
    client = ControlClient(lab.url, context_of(lab.authority.client("gw-3"), lab.authority.ca))
    held = lab.gateways()["gw-1"]["version"]
    stop = asyncio.Event()

    async def refuse_what_is_new() -> None:
        """As an agent whose Envoy takes nothing new."""
        refused = ""
        while not stop.is_set():
            told = await client.poll(
                Poll(protocol=PROTOCOL, agent="test", held=held, refused=refused, wait_s=0.2)
            )
            refused = told.bundle.version if told.bundle else refused
            await client.report(
                report("gw-3", in_force=held, refused=refused, reason="no such filter", ready=True)
            )

    async with asyncio.TaskGroup() as group:
        group.create_task(refuse_what_is_new())
        await asyncio.to_thread(lab.wait_standing, "gw-3", "current")
        await asyncio.to_thread(add, lab, m, endpoint(lab.root / "n.onnx", "n", seed=1))
        found = await asyncio.to_thread(lab.wait_standing, "gw-3", "refused")
        status = await asyncio.to_thread(
            lab.system.wait_for, lambda status: bool(status["gateway"]["reason"])
        )
        for agent in agents:
            await asyncio.to_thread(wait_until, partial(_serves, agent, "n"), 20)
        stop.set()
    await client.close()

    assert found["reason"] == "no such filter"
    assert status["gateway"]["reason"] == "refused by gateway 'gw-3': no such filter"
    assert lab.events("GatewayRefused")[0]["data"]["gateway"] == "gw-3"


def _serves(agent: Agent, name: str) -> bool:
    return agent.infer(name)[0] == 200


def test_a_gateway_that_does_not_reach_replicas_says_so_and_serves_what_it_had(lab: Lab) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("needs mount namespaces, as root has them")
    lab.start(endpoint(lab.root / "m.onnx", "m"))
    lab.system.wait_for(lambda status: bool(status["gateway"]))
    agent = lab.agent("gw-1")
    script = f'mount -t tmpfs none {lab.system.home}/run && exec "$@"'
    agent.start(before=("unshare", "-m", "sh", "-c", script, "sh"))

    found = lab.wait_standing("gw-1", "refused")

    assert "replicas of 'm' listen on Unix sockets of the control plane's host" in found["reason"]
    # What it had: nothing, or the routes from before there was a replica.
    state = agent.state()
    assert state["ready"] == bool(state["version"])


# --- what is not believed ---

GARBAGE = {
    "no JSON": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "another protocol": b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"protocol":7}',
    "half of it": b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{",
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n"
    b"content-length: 0\r\n\r\n",
    "a page": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "nothing": b"",
    "deep": b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"[" * 200000,
    "too much": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"10000\r\n" + b"x" * 65536 + b"\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n",
}


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE.keys())
async def test_whatever_else_answers_is_an_error_and_nothing_more(
    answer: bytes, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "pki")
    async with answering(authority, answer) as port:
        files = authority.client("gw-1")
        client = ControlClient(
            f"https://127.0.0.1:{port}", context_of(files, authority.ca), max_bytes=100_000
        )
        async with asyncio.timeout(10):
            with pytest.raises(HeadraceError):
                await client.poll(POLL)
        await client.close()


async def test_who_never_answers_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    async with answering(authority, None) as port:
        files = authority.client("gw-1")
        client = ControlClient(
            f"https://127.0.0.1:{port}", context_of(files, authority.ca), answer_s=0.3
        )
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="ReadTimeout"):
            await client.poll(POLL)
        assert time.monotonic() - began < 5
        await client.close()


@contextlib.asynccontextmanager
async def answering(authority: Authority, answer: bytes | None) -> AsyncIterator[int]:
    """A server with a good certificate that says `answer` to everybody; None says nothing."""
    files = authority.server("control")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(files.certificate), str(files.key))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()


# --- what Envoy does not take ---


@dataclass
class OneApplier:
    directory: Path
    applier: Applier


@pytest.fixture
def one() -> Iterator[OneApplier]:
    with tempfile.TemporaryDirectory(prefix="hr-") as name:
        directory = Path(name)
        authority = Authority(directory / "pki")
        files = authority.client("gw-1")
        tls = TlsSpec(
            certificate_file=str(files.certificate),
            key_file=str(files.key),
            client_ca_file=str(authority.ca),
        )
        clock = SystemClock()
        mutual = MutualTls(
            certificates=Certificates(clock=clock),
            directory=directory,
            context=client_context(),
            is_server=False,
        )
        mutual.open(tls)
        http, grpc = free_ports(2)
        settings = AgentSettings(
            control="https://127.0.0.1:1",
            tls=tls,
            name="gw-1",
            dir=directory,
            host="127.0.0.1",
            http_port=http,
            grpc_port=grpc,
        )
        applier = Applier(
            settings=settings,
            run_dir=make_private(directory / "run") / "envoy",
            control_socket=directory / "control.sock",
            store=BundleStore(directory / "bundle.json"),
            tls=mutual,
            clock=clock,
            sandbox=Sandbox.of_home(directory),
        )
        yield OneApplier(directory, applier)


OPTIONS = GatewayOptions(
    max_body_bytes=1 << 20,
    connections=ConnectionsSpec(),
    access_log=False,
    request_log=RequestLogSpec(),
    tracing=None,
    tls=None,
)
CORP = JwtSpec(name="corp", issuer="https://corp", audiences=("a",), jwks_file="keys.json")
UNKNOWN = EndpointRoute(
    name="m",
    timeout_s=None,
    arms=(RevisionTarget(version="1", replicas=("127.0.0.1:9",), weight=100),),
)


def bundle(**more: object) -> Bundle:
    found = Bundle(version="", options=OPTIONS, routes=(UNKNOWN,), policy=GatewayPolicy())
    return with_version(msgspec.structs.replace(found, **more))


async def test_what_envoy_refuses_leaves_everything_as_it_was(one: OneApplier) -> None:
    applier = one.applier
    good = bundle()
    bad = bundle(policy=GatewayPolicy(access=AccessSettings(jwt=(CORP,)), key_sets={"corp": "{}"}))
    async with asyncio.TaskGroup() as group:
        applier.group = group
        await applier.apply(good)
        files = {path: path.read_bytes() for path in applier.run_dir.glob("*ds.json")}

        await applier.apply(bad)

        assert (applier.refused, applier.in_force) == (bad.version, good)
        assert "corp" in applier.reason
        assert files == {path: path.read_bytes() for path in applier.run_dir.glob("*ds.json")}
        assert applier.store.read() == good
        assert applier.is_ready
        newer = bundle(routes=())
        await applier.apply(newer)
        assert applier.in_force == newer
        assert not applier.is_refusing
        await applier.stop(drain_s=0.1)


async def test_other_limits_of_envoy_take_a_new_one(one: OneApplier) -> None:
    applier = one.applier
    async with asyncio.TaskGroup() as group:
        applier.group = group
        await applier.apply(bundle())
        assert applier.supervisor is not None
        pid = applier.supervisor.pid

        larger = bundle(options=msgspec.structs.replace(OPTIONS, max_body_bytes=2 << 20))
        await applier.apply(larger)

        assert applier.supervisor.pid != pid
        assert applier.in_force == larger
        await applier.stop(drain_s=0.1)


async def test_a_bundle_that_was_changed_on_its_way_is_no_bundle(one: OneApplier) -> None:
    changed = msgspec.structs.replace(bundle(), routes=())

    with pytest.raises(HeadraceError, match="the content does not match its version"):
        await one.applier.apply(changed)

    assert one.applier.in_force is None
    assert not (one.directory / "bundle.json").exists()


def test_two_agents_never_share_a_directory(lab: Lab) -> None:
    first, second = lab.agent("gw-1"), lab.agent("gw-2")
    first.start()
    first.wait_for(lambda state: not state["ready"])

    second.directory.symlink_to(first.directory)
    second.start()

    assert second.process is not None
    assert second.process.wait(20) != 0
    log = second.log_text()
    assert "another agent serves from" in log or "cannot hold sockets" in log


def test_a_certificate_that_names_nobody_and_a_wrong_url_are_refused_at_once(lab: Lab) -> None:
    agent = lab.agent("gw-1")
    agent.control = "http://127.0.0.1:8443"
    agent.start()
    assert agent.process is not None
    assert agent.process.wait(20) != 0
    assert "agents require mutual TLS" in agent.log_text()
