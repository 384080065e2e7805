"""What does Envoy ask on this host? To hold requests, and what only the control plane knows.

Requests for an endpoint that nothing runs for wait here: they need not cross to the control plane,
which is only told that they wait.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from headrace.control.activator import Activator, HoldLimits
from headrace.control.agents.messages import Bundle
from headrace.control.guards import Receive, Scope, Send
from headrace.core import HeadraceError, UnavailableError
from headrace.gateway_agent.client import Answer
from headrace.protocol import encode_error, grpc_status, http_status

_MOST_BYTES: Final = 1 << 20
_GRPC: Final = "application/grpc"
_RETRY_AFTER_S: Final = 5.0
_OK: Final = 200


@dataclass(slots=True, kw_only=True)
class Holding:
    """Holds requests by what is in force. `poke`: called when the control plane should know."""

    in_force: Callable[[], Bundle | None]
    poke: Callable[[], None]
    activator: Activator = field(init=False)
    _woken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.activator = Activator(limits_of=self._limits_of, wake=self._wake)

    def _limits_of(self, endpoint: str) -> HoldLimits | None:
        bundle = self.in_force()
        return None if bundle is None else bundle.holds.get(endpoint)

    def _wake(self, endpoint: str) -> None:
        self._woken.add(endpoint)
        self.poke()

    def held(self) -> dict[str, int]:
        """How many requests wait, by endpoint, with those that were too large to wait."""
        waiting = self.activator.held
        return {name: waiting.get(name, 1) for name in {*waiting, *self._woken}}

    def told(self) -> None:
        """The control plane knows."""
        self._woken.clear()

    def release(self) -> None:
        """Let go who need not wait any more."""
        bundle = self.in_force()
        for name in list(self.activator.held):
            if bundle is None or name not in bundle.holds:
                self.activator.release(name)


class Asked(Protocol):
    """The control plane, as `ControlClient` reaches it."""

    async def forward(self, method: str, path: str, body: bytes, *, content_type: str) -> Answer:
        """Its answer; HeadraceError if there is none."""


@dataclass(slots=True, kw_only=True)
class Forwarding:
    """The ASGI application that asks the control plane, and says so if it does not answer."""

    client: Asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            return
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        content_type = headers.get("content-type", "")
        try:
            body = await _body(receive)
            query: bytes = scope["query_string"]
            target: bytes = scope["raw_path"] + (b"?%b" % query if query else b"")
            answer = await self.client.forward(
                scope["method"], target.decode("latin-1"), body, content_type=content_type
            )
        except HeadraceError as error:
            await _refuse(send, content_type, error)
            return
        await _answer(send, answer.status, answer.content_type, answer.body)


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > _MOST_BYTES:
            raise UnavailableError(f"more than {_MOST_BYTES} bytes are not passed on")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return b"".join(parts)


async def _refuse(send: Send, content_type: str, error: HeadraceError) -> None:
    away = UnavailableError(
        f"only the control plane can answer this: {error}", retry_after_s=_RETRY_AFTER_S
    )
    if content_type.startswith(_GRPC):
        more = [(b"grpc-status", b"%d" % grpc_status(away))]
        await _answer(send, _OK, _GRPC, b"", more)
    else:
        more = [(b"retry-after", b"%d" % _RETRY_AFTER_S)]
        await _answer(send, http_status(away), "application/json", encode_error(away), more)


async def _answer(
    send: Send,
    status: int,
    content_type: str,
    body: bytes,
    more: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", b"%d" % len(body)),
        *(more or ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
