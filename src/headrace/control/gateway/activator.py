"""Activator that holds the first requests to an endpoint until a replica is ready.

The gateway sends requests of a held endpoint here and keeps a copy. Once a replica is ready, the
answer is a redirect to the same URL; Envoy follows it internally, with the copy and its current
route table. So only waiting requests pass through Python.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from headrace.control.asgi.guards import App, Receive, Scope, Send, respond, until_left
from headrace.core import HeadraceError, OverloadedError, UnavailableError
from headrace.gateway import HELD_PREFIX
from headrace.protocol import encode_error, grpc_status, http_status

MAX_HELD_BYTES: Final = 1 << 20
"""Bytes that Envoy buffers of a request: a larger request cannot be sent again."""
_RETRY_AFTER_S: Final = 1.0
_REDIRECT: Final = 307
_OK: Final = 200
_GRPC: Final = "application/grpc"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldLimits:
    """Limits of one endpoint's held requests: number and time."""

    max_held: int
    hold_s: float


@dataclass(slots=True)
class Activator:
    """Holds requests, and wakes their endpoints. Must be used on the event loop."""

    limits_of: Callable[[str], HoldLimits | None]
    """Returns an endpoint's limits; None if its requests need not wait."""
    wake: Callable[[str], None]
    """Called when an endpoint gets its first held request, and again after all have left; the
    callee calls `release` once the gateway routes the endpoint's requests to a replica.
    """
    _waiting: dict[str, set[asyncio.Future[None]]] = field(default_factory=dict)

    @property
    def held(self) -> Mapping[str, int]:
        """Number of waiting requests by endpoint; endpoints without one are absent."""
        return {endpoint: len(waiting) for endpoint, waiting in self._waiting.items()}

    def release(self, endpoint: str) -> None:
        """Release all held requests of an endpoint, once the gateway routes to a ready replica."""
        for waiting in self._waiting.pop(endpoint, ()):
            if not waiting.done():
                waiting.set_result(None)

    async def hold(self, endpoint: str) -> HeadraceError | None:
        """Wait until a replica is ready and return None, or return why the request cannot wait.

        A cancelled call frees its slot.
        """
        limits = self.limits_of(endpoint)
        if limits is None:
            return None
        waiting = self._waiting.get(endpoint, set())
        if not waiting:
            self.wake(endpoint)
        if len(waiting) >= limits.max_held:
            message = f"endpoint '{endpoint}' is being started, and {len(waiting)} requests wait"
            return OverloadedError(message, retry_after_s=_RETRY_AFTER_S)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(endpoint, waiting).add(future)
        try:
            async with asyncio.timeout(limits.hold_s):
                await future
        except TimeoutError:
            return _not_yet(endpoint, f"not ready {limits.hold_s:g} s after the request arrived")
        finally:
            self._leave(endpoint, future)
        return None

    def refuse_large(self, endpoint: str) -> HeadraceError:
        """Return the error for a request that is too large to wait, and wake the endpoint."""
        if self.limits_of(endpoint) is not None and endpoint not in self._waiting:
            self.wake(endpoint)
        return _not_yet(endpoint, f"being started; more than {MAX_HELD_BYTES} bytes cannot wait")

    def _leave(self, endpoint: str, future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(endpoint)
        if waiting is not None:  # else all requests were released
            waiting.discard(future)
            if not waiting:
                del self._waiting[endpoint]


@dataclass(slots=True)
class HeldRequests:
    """ASGI application of the gateway's socket: holds requests; `fallback` gets the others."""

    activator: Activator
    fallback: App

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold requests that name an endpoint."""
        path: str = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith(HELD_PREFIX):
            await self.fallback(scope, receive, send)
            return
        endpoint = path.removeprefix(HELD_PREFIX).partition("/")[0]
        headers = dict(scope["headers"])
        match await _read(receive):
            case None:
                return
            case size if size > MAX_HELD_BYTES:
                await _refuse(send, headers, self.activator.refuse_large(endpoint))
            case _:
                await self._hold(scope, headers, endpoint, receive, send)

    async def _hold(
        self,
        scope: Scope,
        headers: Mapping[bytes, bytes],
        endpoint: str,
        receive: Receive,
        send: Send,
    ) -> None:
        async with asyncio.TaskGroup() as group:
            held = group.create_task(self.activator.hold(endpoint))
            left = group.create_task(until_left(receive))
            await asyncio.wait({held, left}, return_when=asyncio.FIRST_COMPLETED)
            held.cancel()
            left.cancel()
        if held.cancelled():
            return  # the caller left
        error = held.result()
        if error is None:
            await _redirect(send, scope, headers, endpoint)
        else:
            await _refuse(send, headers, error)


def _not_yet(endpoint: str, reason: str) -> UnavailableError:
    return UnavailableError(f"endpoint '{endpoint}' is {reason}", retry_after_s=_RETRY_AFTER_S)


async def _read(receive: Receive) -> int | None:
    """Read the body to its end or past the limit; return its bytes, None if the caller left."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        size += len(message.get("body", b""))
        if size > MAX_HELD_BYTES or not message.get("more_body", False):
            return size


async def _redirect(
    send: Send, scope: Scope, headers: Mapping[bytes, bytes], endpoint: str
) -> None:
    """Redirect to the requested URL, which makes Envoy select the route again."""
    scheme, host = headers.get(b"x-forwarded-proto", b"http"), headers.get(b"host", b"")
    path: bytes = scope["raw_path"].removeprefix(f"{HELD_PREFIX}{endpoint}".encode())
    query: bytes = scope["query_string"]
    location = b"%b://%b%b%b%b" % (scheme, host, path, b"?" if query else b"", query)
    await respond(send, _REDIRECT, "", b"", [(b"location", location)])


async def _refuse(send: Send, headers: Mapping[bytes, bytes], error: HeadraceError) -> None:
    after_s = max(round(error.retry_after_s or 0.0), 1)
    if headers.get(b"content-type", b"").startswith(_GRPC.encode()):
        fields = [
            (b"grpc-status", b"%d" % grpc_status(error)),
            (b"grpc-message", quote(str(error), safe=" '(),;:").encode()),
            (b"grpc-retry-pushback-ms", b"%d" % (1000 * after_s)),
        ]
        await respond(send, _OK, _GRPC, b"", fields)
        return
    fields = [(b"retry-after", b"%d" % after_s)]
    await respond(send, http_status(error), "application/json", encode_error(error), fields)
