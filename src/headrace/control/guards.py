"""What may not reach the management API? It has no passwords yet, so browsers are kept away.

A web page that a user visits can send requests to his own loopback address. It cannot choose the
Host header (against DNS rebinding we take known names only) nor hide its Origin.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from headrace.control.problems import problem_body
from headrace.core import Code

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES: Final = 4 << 20
_UPLOADS: Final = "/api/v1/models/"
"""Bodies of requests to what begins so are models: streamed to disk, with a bound of their own."""
_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
_FORBIDDEN: Final = 403
_MISDIRECTED: Final = 421
_TOO_LARGE: Final = 413


def is_allowed_host(header: str, allowed: Iterable[str]) -> bool:
    """Whether a Host header names this machine's loopback or one of `allowed`; ports are ignored.

    An IP address is allowed as such: a name that was rebound never looks like one.
    """
    name = _host_name(header)
    if name is None:
        return False
    if name in _LOOPBACK_NAMES or name.endswith(".localhost") or name in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a request's Origin is the page of this very API."""
    return urlsplit(origin).netloc.lower() == host.lower()


def _host_name(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


@dataclass(slots=True, kw_only=True)
class Guard:
    """Refuses requests for other hosts, from other origins, and with large bodies but models."""

    app: App
    allowed_hosts: frozenset[str]
    max_body_bytes: int = MAX_BODY_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        refusal = self._refusal(headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        if scope["path"].startswith(_UPLOADS):
            await self.app(scope, receive, send)
            return
        body = await _read_body(receive, self.max_body_bytes)
        if body is None:
            message = f"the body is larger than {self.max_body_bytes} bytes"
            await _refuse(send, _TOO_LARGE, Code.RESOURCE_EXHAUSTED, message)
            return
        await self.app(scope, _replay(body, receive), send)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, Code, str] | None:
        host = headers.get("host", "")
        if not is_allowed_host(host, self.allowed_hosts):
            message = f"the Host header {host[:100]!r} is none of this server's names"
            return _MISDIRECTED, Code.PERMISSION_DENIED, message
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        if (origin is not None and not is_same_origin(origin, host)) or site == "cross-site":
            message = "requests from other web sites are refused"
            return _FORBIDDEN, Code.PERMISSION_DENIED, message
        return None


async def _read_body(receive: Receive, limit_bytes: int) -> bytes | None:
    """The whole body; None if it is larger than `limit_bytes`."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first."""
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(send: Send, status: int, code: Code, detail: str) -> None:
    body = problem_body(status=status, code=code, detail=detail)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
