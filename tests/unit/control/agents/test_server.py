"""What the listener takes and refuses, without a socket: the protocol has said who speaks."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.agents.counts import FleetCounts
from headrace.control.agents.fleet import GatewayFleet
from headrace.control.agents.messages import PROTOCOL, AgentStatus, Poll, decode_instructions
from headrace.control.agents.server import AGENT, FINGERPRINT, UNTIL, AgentsApp
from headrace.control.asgi.guards import Message, Receive, Scope, Send
from headrace.control.base.agents_settings import AgentsSettings
from headrace.core.spec.access import TlsSpec
from headrace.gateway import EnvoySettings
from headrace.testing import LoopClock, VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def statistics(scope: Scope, _receive: Receive, send: Send) -> None:
    """What only the control plane can answer: says which path was asked for."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["raw_path"]})


@pytest.fixture
def app(tmp_path: Path) -> AgentsApp:
    fleet = GatewayFleet(
        settings=EnvoySettings(run_dir=tmp_path / "e"),
        clock=LoopClock(0.0),
        routes_path=tmp_path / "routes.json",
        counts=FleetCounts(path=tmp_path / "counts.json"),
    )
    tls = TlsSpec(certificate_file="c", key_file="k", client_ca_file="a")
    settings = AgentsSettings(tls=tls, allow=("gw-*",))
    return AgentsApp(
        fleet=fleet,
        settings=settings,
        fallback=statistics,
        wake=lambda _name, _held: None,
        has_desired_state=lambda: False,
    )


async def ask(
    app: AgentsApp, method: str, path: str, *body: bytes, name: str = "gw-1"
) -> tuple[int, bytes]:
    """Status and body of the answer to one request of a gateway."""
    sent: list[Message] = []
    pending: list[Message] = [
        {"type": "http.request", "body": part, "more_body": number < len(body)}
        for number, part in enumerate(body, start=1)
    ] or [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if pending:
            return pending.pop(0)
        return await _never()

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        AGENT: name,
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def _never() -> Message:
    await asyncio.sleep(10_000)
    return {"type": "http.disconnect"}


def encoded(message: msgspec.Struct) -> Sequence[bytes]:
    data = msgspec.json.encode(message)
    return data[:5], data[5:]


POLL = Poll(protocol=PROTOCOL, agent="1", wait_s=1.0)


async def test_a_poll_is_answered_when_there_is_nothing_new(app: AgentsApp) -> None:
    status, body = await ask(app, "POST", "/agents/v1/poll", *encoded(POLL))

    assert status == 200
    assert decode_instructions(body).bundle is None


async def test_a_report_is_heard_of_its_own_gateway_only(app: AgentsApp) -> None:
    def report(name: str) -> Sequence[bytes]:
        return encoded(AgentStatus(protocol=PROTOCOL, agent="1", name=name))

    assert (await ask(app, "POST", "/agents/v1/report", *report("gw-1")))[0] == 200
    status, body = await ask(app, "POST", "/agents/v1/report", *report("gw-2"))

    assert status == 403
    assert b"which may not report for 'gw-2'" in body
    assert [one.name for one in app.fleet.states()] == ["gw-1"]


@pytest.mark.parametrize(
    ("name", "why"), [("", b"has no subject name"), ("web-1", b"--agents-allow web-1")]
)
async def test_who_may_not_come_is_told_why(app: AgentsApp, name: str, why: bytes) -> None:
    status, body = await ask(app, "POST", "/agents/v1/poll", *encoded(POLL), name=name)

    assert status == 403
    assert why in body


async def test_a_certificate_that_expired_since_has_to_be_replaced_by_another(
    app: AgentsApp,
) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/agents/v1/poll"}
    until = app.fleet.clock.now() - 1.0
    await app({**scope, AGENT: "gw-1", UNTIL: until}, _never, send)

    assert sent[0]["status"] == 403
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_a_revoked_certificate_is_refused_whatever_it_asks(app: AgentsApp) -> None:
    app.revoked.take(frozenset({"f" * 64}))
    for path in ("/agents/v1/poll", "/agents/v1/report", "/agents/v1/forward/v2/models/stats"):
        sent: list[Message] = []

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
        await app({**scope, AGENT: "gw-1", FINGERPRINT: "f" * 64}, _never, send)
        assert sent[0]["status"] == 403
        assert (b"connection", b"close") in sent[0]["headers"]
        assert b"was revoked: issue another" in sent[1]["body"]
    assert (await ask(app, "POST", "/agents/v1/poll", *encoded(POLL)))[0] == 200


async def test_an_open_poll_ends_when_its_certificate_is_revoked(app: AgentsApp) -> None:
    sent: list[Message] = []
    loop = asyncio.get_running_loop()
    body = msgspec.json.encode(msgspec.structs.replace(POLL, wait_s=30.0))
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return pending.pop() if pending else await _never()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/agents/v1/poll"}
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        group.create_task(app({**scope, AGENT: "gw-1", FINGERPRINT: "f" * 64}, receive, send))
        await asyncio.sleep(1.0)
        app.revoked.take(frozenset({"e" * 64}))  # somebody else's
        await asyncio.sleep(1.0)
        assert sent == []
        app.revoked.take(frozenset({"f" * 64}))

    assert sent[0]["status"] == 403
    assert loop.time() - began == pytest.approx(2.0)


@pytest.mark.parametrize("body", [b"", b"hello", b"[" * 5000, b'{"protocol":1,"agent":7}'])
async def test_what_is_no_message_is_an_error(app: AgentsApp, body: bytes) -> None:
    assert (await ask(app, "POST", "/agents/v1/poll", body))[0] == 400
    assert (await ask(app, "POST", "/agents/v1/poll", b"x" * (1 << 20), b"y"))[0] == 400


async def test_nothing_else_is_there(app: AgentsApp) -> None:
    assert (await ask(app, "GET", "/agents/v1/poll"))[0] == 404
    assert (await ask(app, "POST", "/api/v1/apply", b"{}"))[0] == 404
    assert (await ask(app, "DELETE", "/agents/v1/forward/v2/models/stats"))[0] == 404


async def test_what_callers_ask_is_passed_on_as_they_asked(app: AgentsApp) -> None:
    assert await ask(app, "GET", "/agents/v1/forward/v2/models/stats") == (
        200,
        b"/v2/models/stats",
    )
