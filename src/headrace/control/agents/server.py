"""Listener for gateway agents: accepts polls and reports, from each agent for itself only."""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from headrace import __version__
from headrace.control.agents import messages
from headrace.control.agents.fleet import GatewayFleet
from headrace.control.agents.messages import (
    FORWARD_PATH,
    LONGEST_WAIT_S,
    MAX_REPORT_BYTES,
    Refused,
    decode_poll,
    decode_report,
    encode_instructions,
)
from headrace.control.agents.tls import (
    MutualTls,
    RevokedAgents,
    agent_name,
    expires_at,
    fingerprint_of,
    may_report_for,
)
from headrace.control.asgi.guards import App, Receive, Scope, Send, read_body, respond, until_left
from headrace.control.base.agents_settings import AgentsSettings
from headrace.core import HeadraceError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from headrace.protocol import http_status

if TYPE_CHECKING:
    from headrace.control.asgi.edge import BoundedProtocol

_LOG: Final = logging.getLogger("headrace.control")
AGENT: Final = "headrace.agent"
"""Key of the agent's name in an ASGI scope."""
UNTIL: Final = "headrace.agent_until"
"""Key of the expiry of the agent's certificate, in seconds since 1970."""
FINGERPRINT: Final = "headrace.agent_fingerprint"
"""Key of the fingerprint of the agent's certificate."""
_MAX_POLL_BYTES: Final = 1 << 20
_MAX_BYTES_IN_FLIGHT: Final = 1 << 20
"""Larger bodies are not decoded in the event loop, which they would block for 10 ms."""
_JSON: Final = "application/json"
_STOP_S: Final = 1
_KEEP_ALIVE_S: Final = 60  # longer than an agent's poll interval
_OK: Final = 200
_FORWARDED: Final = frozenset({"GET", "POST"})


@dataclass(slots=True, kw_only=True)
class AgentsApp:
    """The ASGI application for agents."""

    fleet: GatewayFleet
    settings: AgentsSettings
    fallback: App
    """Serves requests that gateways forward to the control plane."""
    wake: Callable[[str, int], None]
    """Starts an endpoint, given the number of waiting requests."""
    has_desired_state: Callable[[], bool]
    revoked: RevokedAgents = field(default_factory=RevokedAgents)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        until: float | None = scope.get(UNTIL)
        is_over = until is not None and self.fleet.clock.now() > until
        name: str = "" if is_over else scope.get(AGENT, "")
        fingerprint: str = scope.get(FINGERPRINT, "")
        path: str = scope["path"]
        try:
            self._check(name, fingerprint)
            match scope["method"], path:
                case "POST", messages.POLL_PATH:
                    await self._poll(fingerprint, receive, send)
                case "POST", messages.REPORT_PATH:
                    await self._report(name, receive, send)
                case method, _ if path.startswith(f"{FORWARD_PATH}/") and method in _FORWARDED:
                    raw: bytes = scope["raw_path"].removeprefix(FORWARD_PATH.encode())
                    caller = {"path": path.removeprefix(FORWARD_PATH), "raw_path": raw}
                    await self.fallback({**scope, **caller}, receive, send)
                case _:
                    raise NotFoundError(f"there is no {path[:100]} for agents")
        except HeadraceError as error:
            _LOG.warning("refused an agent", extra={"gateway": name, "error": str(error)})
            body = msgspec.json.encode(Refused(code=error.code, message=str(error)))
            # A gateway with a renewed certificate presents it when it reconnects.
            is_last = not name or self.revoked.has(fingerprint)
            more = [(b"connection", b"close")] if is_last else []
            await respond(send, http_status(error), _JSON, body, more)

    def _check(self, name: str, fingerprint: str) -> None:
        if not name:
            raise PermissionDeniedError("the certificate has no subject name, or it has expired")
        if self.revoked.has(fingerprint):
            raise _revoked(fingerprint)
        if not self.settings.allows(name):
            raise PermissionDeniedError(
                f"gateway '{name}' is not allowed: start the control plane with "
                f"--agents-allow {name}"
            )

    async def _poll(self, fingerprint: str, receive: Receive, send: Send) -> None:
        poll = decode_poll(await _body(receive, _MAX_POLL_BYTES))
        wait_s = min(max(poll.wait_s, 0.0), LONGEST_WAIT_S)
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(
                self.fleet.poll(poll, wait_s=wait_s, has_desired_state=self.has_desired_state)
            )
            left = group.create_task(until_left(receive))
            revoked = group.create_task(self.revoked.wait_for(fingerprint))
            waits = {answer, left, revoked}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self.revoked.has(fingerprint):
            raise _revoked(fingerprint)
        if not answer.cancelled():
            ask, bundle = answer.result()
            await respond(
                send, _OK, _JSON, encode_instructions(__version__, ask=ask, bundle=bundle)
            )

    async def _report(self, name: str, receive: Receive, send: Send) -> None:
        data = await _body(receive, MAX_REPORT_BYTES)
        is_large = len(data) > _MAX_BYTES_IN_FLIGHT
        report = await asyncio.to_thread(decode_report, data) if is_large else decode_report(data)
        if not may_report_for(name, report.name):
            raise PermissionDeniedError(
                f"the certificate is for '{name}', which may not report for '{report.name[:100]}'"
            )
        for endpoint, held in self.fleet.take_report(report).items():
            self.wake(endpoint, held)
        await respond(send, _OK, _JSON, b"{}")


@dataclass(slots=True, kw_only=True)
class AgentsServer:
    """Serves agents on `sock` until cancelled."""

    load: Callable[[], AgentsApp]
    """Builds the application, which is slow."""
    tls: MutualTls
    sock: socket.socket
    revoked: RevokedAgents

    async def run(self) -> None:
        """Serve until cancelled."""
        from headrace.control.asgi.edge import make_server  # noqa: PLC0415  # loads uvicorn

        app = await asyncio.to_thread(self.load)
        server = make_server(
            app,
            stop_s=_STOP_S,
            protocol=_agent_protocol(),
            tls=self.tls.context,
            keep_alive_s=_KEEP_ALIVE_S,
        )
        serving = asyncio.create_task(server.serve(sockets=[self.sock]))
        looking = asyncio.create_task(self.revoked.run())
        try:
            await asyncio.shield(serving)
        finally:
            looking.cancel()
            server.should_exit = True
            server.force_exit = True  # agents reconnect by themselves
            await asyncio.wait({serving, looking})


def _agent_protocol() -> "type[BoundedProtocol]":
    """Return uvicorn's HTTP/1.1 protocol with the client certificate's names. Loads uvicorn."""
    from headrace.control.asgi.edge import BoundedProtocol  # noqa: PLC0415  # loads uvicorn

    class AgentProtocol(BoundedProtocol):
        def on_headers_complete(self) -> None:
            """Add the names to the request before the application starts."""
            secure = self.transport.get_extra_info("ssl_object")
            certificate = (None if secure is None else secure.getpeercert()) or {}
            encoded = (None if secure is None else secure.getpeercert(binary_form=True)) or b""
            names = {
                AGENT: agent_name(certificate),
                UNTIL: expires_at(certificate),
                FINGERPRINT: fingerprint_of(encoded),
            }
            self.scope.update(names)  # type: ignore[typeddict-item]  # keys of ours
            super().on_headers_complete()

    return AgentProtocol


def _revoked(fingerprint: str) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"the certificate with SHA-256 fingerprint {fingerprint} was revoked: issue another "
        "one, or remove it from the control plane's list (--agents-revoked)"
    )


async def _body(receive: Receive, limit_bytes: int) -> bytes:
    body = await read_body(receive, limit_bytes)
    if body is None:
        raise InvalidArgumentError(f"the message has more than {limit_bytes} bytes")
    return body
