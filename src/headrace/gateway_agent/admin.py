"""Health, readiness and metrics of a gateway agent, on its own port."""

from dataclasses import dataclass
from typing import Final

import msgspec

from headrace import __version__
from headrace.control.certificates import Certificates
from headrace.control.guards import Receive, Scope, Send
from headrace.core import HeadraceError
from headrace.gateway_agent.agent import GatewayAgent
from headrace.observe.metrics import TEXT_TYPE, Family, Labels, counter, gauge, text

_OK: Final = 200
_NOT_FOUND: Final = 404
_UNAVAILABLE: Final = 503
_JSON: Final = "application/json"


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/readyz`."""

    ready: bool
    name: str
    agent: str
    version: str
    problem: str
    control: str


@dataclass(slots=True, kw_only=True)
class AdminApp:
    """The ASGI application of the agent's own port. Being without a control plane is no trouble."""

    agent: GatewayAgent
    certificates: Certificates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        del receive  # no request has a body
        if scope["type"] != "http":
            return
        match scope["path"]:
            case "/healthz":
                await _answer(send, _OK, "ok\n", TEXT_TYPE)
            case "/readyz":
                state = ready_state(self.agent)
                status = _OK if state.ready else _UNAVAILABLE
                await _answer(send, status, msgspec.json.encode(state).decode(), _JSON)
            case "/metrics":
                await _answer(send, _OK, await self._metrics(), TEXT_TYPE)
            case _:
                await _answer(send, _NOT_FOUND, "use /healthz, /readyz or /metrics\n", TEXT_TYPE)

    async def _metrics(self) -> str:
        keeper = self.agent.applier.keeper
        envoys = ""
        if keeper is not None:
            try:
                envoys = await keeper.stats(full=False)
            except HeadraceError:
                envoys = ""  # a gap: Envoy is being started
        own = [*own_families(self.agent), *self.certificates.families()]
        return text(own).decode() + envoys


def ready_state(agent: GatewayAgent) -> Ready:
    """Whether requests are served, and by which version."""
    applier = agent.applier
    bundle = applier.in_force
    return Ready(
        ready=applier.is_ready,
        name=agent.name,
        agent=__version__,
        version="" if bundle is None else bundle.version,
        problem=applier.problem or (applier.reason if applier.is_refusing else ""),
        control=agent.away or ("answers" if agent.heard_at is not None else "not heard yet"),
    )


def own_families(agent: GatewayAgent) -> list[Family]:
    """What the agent itself counts."""
    applier, now = agent.applier, agent.clock.monotonic()
    routes = 0 if applier.in_force is None else len(applier.in_force.routes)
    heard: list[tuple[Labels, float]] = []
    if agent.heard_at is not None:
        heard.append(((), now - agent.heard_at))
    held = sorted(agent.holding.activator.held.items())
    return [
        gauge("headrace_agent_ready", "1 while Envoy serves.", [((), applier.is_ready)]),
        gauge("headrace_agent_routes", "Endpoints in force.", [((), routes)]),
        gauge("headrace_agent_heard_seconds", "Since the control plane answered.", heard),
        gauge(
            "headrace_agent_refused",
            "1 while the last version that came was refused.",
            [((), applier.is_refusing)],
        ),
        counter("headrace_agent_answers_total", "Of the control plane.", [((), agent.answers)]),
        counter(
            "headrace_agent_failures_total",
            "Times that the control plane did not answer, or not as it should.",
            [((), agent.failures)],
        ),
        gauge(
            "headrace_agent_held_requests",
            "Requests that wait for a replica.",
            [((("endpoint", name),), count) for name, count in held],
        ),
    ]


async def _answer(send: Send, status: int, text: str, content_type: str) -> None:
    body = text.encode()
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
