"""HTTP applications of the agent: forwarded requests, and the agent's own port."""

from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from headrace import __version__
from headrace.control.asgi.guards import Receive, Scope, Send, read_body, respond
from headrace.control.gateway.certificates import Certificates
from headrace.core import HeadraceError, UnavailableError
from headrace.gateway_agent.agent import GatewayAgent
from headrace.gateway_agent.client import ControlResponse
from headrace.observe.metrics import TEXT_TYPE, Family, Labels, counter, gauge, text
from headrace.protocol import encode_error, grpc_status, http_status

_MAX_BYTES: Final = 1 << 20
_GRPC: Final = "application/grpc"
_RETRY_AFTER_S: Final = 5.0
_OK: Final = 200
_NOT_FOUND: Final = 404
_UNAVAILABLE: Final = 503
_JSON: Final = "application/json"


class ControlApi(Protocol):
    """Control plane, as `ControlClient` reaches it."""

    async def forward(
        self, method: str, path: str, body: bytes, *, content_type: str
    ) -> ControlResponse:
        """Return the control plane's response; HeadraceError if there is none."""


@dataclass(slots=True, kw_only=True)
class Forwarding:
    """ASGI application that forwards requests to the control plane and reports its failures."""

    client: ControlApi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request."""
        if scope["type"] != "http":
            return
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        content_type = headers.get("content-type", "")
        try:
            body = await read_body(receive, _MAX_BYTES)
            if body is None:
                raise UnavailableError(f"more than {_MAX_BYTES} bytes are not forwarded")
            query: bytes = scope["query_string"]
            target: bytes = scope["raw_path"] + (b"?%b" % query if query else b"")
            answer = await self.client.forward(
                scope["method"], target.decode("latin-1"), body, content_type=content_type
            )
        except HeadraceError as error:
            away = UnavailableError(
                f"only the control plane can answer this request: {error}",
                retry_after_s=_RETRY_AFTER_S,
            )
            if content_type.startswith(_GRPC):
                more = [(b"grpc-status", b"%d" % grpc_status(away))]
                await respond(send, _OK, _GRPC, b"", more)
            else:
                more = [(b"retry-after", b"%d" % _RETRY_AFTER_S)]
                await respond(send, http_status(away), _JSON, encode_error(away), more)
            return
        await respond(send, answer.status, answer.content_type, answer.body)


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/readyz`."""

    ready: bool
    name: str
    agent: str
    version: str
    problem: str
    control: str


@dataclass(slots=True, kw_only=True)
class AdminApp:
    """ASGI application of the agent's own port; ready also without a control plane."""

    agent: GatewayAgent
    certificates: Certificates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request."""
        del receive  # requests have no body
        if scope["type"] != "http":
            return
        match scope["path"]:
            case "/healthz":
                await respond(send, _OK, TEXT_TYPE, b"ok\n")
            case "/readyz":
                state = ready_state(self.agent)
                status = _OK if state.ready else _UNAVAILABLE
                await respond(send, status, _JSON, msgspec.json.encode(state))
            case "/metrics":
                supervisor = self.agent.applier.supervisor
                envoys = ""
                if supervisor is not None:
                    try:
                        envoys = await supervisor.stats(full=False)
                    except HeadraceError:
                        envoys = ""  # no statistics: Envoy is starting
                own = [*own_families(self.agent), *self.certificates.families()]
                await respond(send, _OK, TEXT_TYPE, text(own) + envoys.encode())
            case _:
                usage = b"use /healthz, /readyz or /metrics\n"
                await respond(send, _NOT_FOUND, TEXT_TYPE, usage)


def ready_state(agent: GatewayAgent) -> Ready:
    """Return whether requests are served, and by which version."""
    applier = agent.applier
    bundle = applier.in_force
    return Ready(
        ready=applier.is_ready,
        name=agent.name,
        agent=__version__,
        version="" if bundle is None else bundle.version,
        problem=applier.problem or (applier.reason if applier.is_refusing else ""),
        control=agent.disconnect_reason
        or (
            "answers"
            if agent.last_contact_at is not None
            else "no contact with the control plane yet"
        ),
    )


def own_families(agent: GatewayAgent) -> list[Family]:
    """Return the agent's own metrics."""
    applier, now = agent.applier, agent.clock.monotonic()
    routes = 0 if applier.in_force is None else len(applier.in_force.routes)
    ages: list[tuple[Labels, float]] = []
    if agent.last_contact_at is not None:
        ages.append(((), now - agent.last_contact_at))
    held = sorted(agent.holding.activator.held.items())
    return [
        gauge("headrace_agent_ready", "1 while Envoy serves, else 0.", [((), applier.is_ready)]),
        gauge("headrace_agent_routes", "Endpoints of the active version.", [((), routes)]),
        gauge(
            "headrace_agent_heard_seconds",
            "Seconds since the last response of the control plane.",
            ages,
        ),
        gauge(
            "headrace_agent_refused",
            "1 while the newest version is rejected, else 0.",
            [((), applier.is_refusing)],
        ),
        counter(
            "headrace_agent_answers_total", "Responses of the control plane.", [((), agent.answers)]
        ),
        counter(
            "headrace_agent_failures_total",
            "Failed requests to the control plane.",
            [((), agent.failures)],
        ),
        gauge(
            "headrace_agent_held_requests",
            "Requests waiting for a replica.",
            [((("endpoint", name),), count) for name, count in held],
        ),
    ]
