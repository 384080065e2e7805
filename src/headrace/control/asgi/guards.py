"""Guards of the management API: origins and sizes of requests, errors as in RFC 9457."""

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from headrace.core import Code, ConflictError, HeadraceError
from headrace.core.spec.parse import SpecError, SpecMistake
from headrace.protocol import http_status

PROBLEM_TYPE: Final = "application/problem+json"


class StaleError(ConflictError):
    """The change is conditional on a generation that is not current any more."""


class Mistake(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mistake and its location."""

    place: str
    message: str
    line: int | None = None


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem document; `code` is stable, `detail` is readable."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[Mistake, ...] = ()
    error: str = ""
    """The same as `detail`, for Triton's clients."""


def problem_body(
    *, status: int, code: Code, detail: str, mistakes: Sequence[SpecMistake] = ()
) -> bytes:
    """Return a problem document as JSON."""
    problem = ProblemDocument(
        type="about:blank",
        title=HTTPStatus(status).phrase if status in set(HTTPStatus) else "Error",
        status=status,
        code=code.value,
        detail=detail,
        errors=tuple(Mistake(m.place, m.message, m.line) for m in mistakes),
        error=detail,
    )
    return msgspec.json.encode(problem)


def problem_of(error: HeadraceError) -> tuple[int, bytes]:
    """Return the HTTP status and the body of the response to `error`."""
    status = HTTPStatus.PRECONDITION_FAILED if isinstance(error, StaleError) else http_status(error)
    mistakes = error.mistakes if isinstance(error, SpecError) else ()
    return status, problem_body(
        status=status, code=error.code, detail=str(error), mistakes=mistakes
    )


Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
MAX_BODY_BYTES: Final = 4 << 20
_UPLOAD: Final = re.compile("/api/v1/models/[^/]+|/upload")
_LOGIN_PATHS: Final = frozenset({"/auth/login", "/auth/callback"})
_JOINS: Final = {"cookie": "; "}
_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
_FORBIDDEN: Final = 403
_MISDIRECTED: Final = 421
_TOO_LARGE: Final = 413
_LINGER_S: Final = 1.0
_MAX_DROPPED: Final = 16 << 20


def is_allowed_host(header: str, allowed: Iterable[str]) -> bool:
    """Whether a Host header names this machine's loopback or one of `allowed`; ports are ignored.

    Every IP address is allowed: DNS rebinding needs a name.
    """
    try:
        name = urlsplit(f"//{header}").hostname
        if name is None:
            return False
        if name not in _LOOPBACK_NAMES and not name.endswith(".localhost") and name not in allowed:
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a request's Origin is a page of this API."""
    return urlsplit(origin).netloc.lower() == host.lower()


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's headers by lower-case name; duplicate headers are joined."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}{_JOINS.get(key, ', ')}{text}" if key in headers else text
    return headers


@dataclass(slots=True, kw_only=True)
class HostGuard:
    """Refuses requests for other hosts and from other origins."""

    app: App
    allowed_hosts: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope, headers_of(scope))
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, detail = refusal
        body = problem_body(status=status, code=Code.PERMISSION_DENIED, detail=detail)
        await refuse(receive, send, status, body)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not is_allowed_host(host, self.allowed_hosts):
            message = f"the Host header {host[:100]!r} is not an allowed host name of this server"
            return _MISDIRECTED, message
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        is_foreign = site == "cross-site" and not _is_login(scope, headers)
        if (origin is not None and not is_same_origin(origin, host)) or is_foreign:
            return _FORBIDDEN, "requests from other web sites are refused"
        return None


def is_upload(method: str, path: str) -> bool:
    """Whether the body is a model, which its route streams to disk with separate limits."""
    return method == "POST" and _UPLOAD.fullmatch(path) is not None


@dataclass(slots=True, kw_only=True)
class BodyLimit:
    """Refuses bodies larger than `max_body_bytes`, except uploads of models."""

    app: App
    max_body_bytes: int = MAX_BODY_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if is_upload(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        body = await read_body(receive, self.max_body_bytes)
        if body is None:
            message = f"the body is larger than {self.max_body_bytes} bytes"
            problem = problem_body(status=_TOO_LARGE, code=Code.RESOURCE_EXHAUSTED, detail=message)
            await refuse(receive, send, _TOO_LARGE, problem)
            return
        # A `receive` that returns `body` first.
        pending = [body]

        async def replay() -> Message:
            if pending:
                return {"type": "http.request", "body": pending.pop(), "more_body": False}
            return await receive()

        await self.app(scope, replay, send)


def _is_login(scope: Scope, headers: dict[str, str]) -> bool:
    """Whether the identity provider sent a browser here, as a page and not by a script."""
    is_page = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return is_page and scope["path"] in _LOGIN_PATHS


async def read_body(receive: Receive, limit_bytes: int) -> bytes | None:
    """Return the body, partial after a disconnect; None if it is larger than `limit_bytes`."""
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


async def until_left(receive: Receive) -> None:
    """Return when the caller disconnects, after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(
    send: Send,
    status: int,
    content_type: str,
    body: bytes,
    more: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Send a response with `body`. `content_type`: empty for none. `more`: further headers."""
    headers = [(b"content-length", b"%d" % len(body)), *more]
    if content_type:
        headers.append((b"content-type", content_type.encode("latin-1")))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(
    receive: Receive,
    send: Send,
    status: int,
    problem: bytes,
    more: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Send a problem document, and close the connection: the body was not read.

    The rest of the body is read and dropped for a limited time: an immediate close would reset the
    connection, and the client would lose the response.
    """
    headers = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", str(len(problem)).encode()),
        (b"connection", b"close"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": problem, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            await _drop_body(receive)
    await send({"type": "http.response.body", "body": b""})


async def _drop_body(receive: Receive) -> None:
    size = 0
    while size < _MAX_DROPPED:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        await asyncio.sleep(0)  # without a pause, buffered data would starve the timeout
