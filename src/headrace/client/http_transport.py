"""HTTP transport with httpx."""

import time
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec

from headrace.client.answers import (
    ConnectionLostError,
    ProtocolError,
    tls_failure,
    too_late,
)
from headrace.client.conversation import SendMessage
from headrace.client.credentials import ConnectionOptions, ServerAddress, tls_context
from headrace.core import (
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.core.headers import TIMEOUT_HEADER

# Below the replica's and Envoy's idle timeouts, so that the client closes idle connections: if a
# server closes one just as a request is sent, that request fails.
_LIMITS: Final = httpx.Limits(
    max_connections=256, max_keepalive_connections=64, keepalive_expiry=30.0
)

# So that an unreachable host is distinguished from a slow model long before the deadline.
_CONNECT_TIMEOUT_S: Final = 5.0


class HttpMessage(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP request; `path` includes the query."""

    method: str
    path: str
    headers: dict[str, str] = {}
    content: bytes = b""
    max_reply_bytes: int | None = None
    """Largest body of the response, for `AsyncHttpTransport`; None for no limit."""


class HttpReply(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP response; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class BlockingHttpTransport:
    """Connection pool to one server."""

    def __init__(self, target: ServerAddress, options: ConnectionOptions) -> None:
        self._where = _where(target)
        self._extensions = _extensions(options)
        transport = httpx.HTTPTransport(uds=target.uds) if target.uds else None
        self._client = httpx.Client(
            transport=transport, limits=_LIMITS, **_options(target, options)
        )

    def send(self, send: SendMessage) -> HttpReply:
        """Return the server's reply.

        Raises:
            UnavailableError: No connection could be made.
            ConnectionLostError: It broke after the request was sent.
            DeadlineExceededError: `send.timeout_s` passed.
        """
        message: HttpMessage = send.message
        timeouts = _Timeouts(send.timeout_s)
        request = self._client.build_request(
            message.method,
            message.path,
            headers=message.headers | _timeout_header(send.timeout_s),
            content=message.content or None,
            extensions={"timeout": timeouts, **self._extensions},
        )
        try:
            response = self._client.send(request, stream=True)
            try:
                chunks = []
                for chunk in response.iter_bytes():
                    timeouts.check()
                    chunks.append(chunk)
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise failure(error, self._where, send.timeout_s) from error
        return _reply(response, b"".join(chunks))

    def close(self) -> None:
        """Close every connection."""
        self._client.close()


class AsyncHttpTransport:
    """Connection pool to one server, for one event loop."""

    def __init__(self, target: ServerAddress, options: ConnectionOptions) -> None:
        self._where = _where(target)
        self._extensions = _extensions(options)
        transport = httpx.AsyncHTTPTransport(uds=target.uds) if target.uds else None
        self._client = httpx.AsyncClient(
            transport=transport, limits=_LIMITS, **_options(target, options)
        )

    async def send(self, send: SendMessage) -> HttpReply:
        """Return the server's reply; the caller enforces the timeout.

        Raises:
            UnavailableError: No connection could be made.
            ConnectionLostError: It broke after the request was sent.
            ProtocolError: The body exceeds the message's `max_reply_bytes`.
        """
        message: HttpMessage = send.message
        limit_bytes = message.max_reply_bytes
        size_bytes, chunks = 0, []
        try:
            async with self._client.stream(
                message.method,
                message.path,
                headers=message.headers | _timeout_header(send.timeout_s),
                content=message.content or None,
                timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
                extensions=self._extensions,
            ) as response:
                async for chunk in response.aiter_bytes():
                    size_bytes += len(chunk)
                    if limit_bytes is not None and size_bytes > limit_bytes:
                        msg = f"the server's answer is larger than {limit_bytes} bytes"
                        raise ProtocolError(msg)
                    chunks.append(chunk)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise failure(error, self._where, send.timeout_s) from error
        return _reply(response, b"".join(chunks))

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


class _Timeouts(dict[str, float | None]):
    """Remaining time of one timeout for each phase of a request.

    httpx gives every phase (wait for a connection, connect, write, read) the same timeout, so the
    caller could wait four times as long. httpcore reads the number when a phase begins, and gets
    the remaining time from this object.
    """

    def __init__(self, timeout_s: float | None) -> None:
        super().__init__()
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401, ARG002  # dict.get's types
        """Return the remaining time for this phase."""
        # Zero would make a socket non-blocking, which fails with another error.
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)
        if key != "connect":
            return left
        return _CONNECT_TIMEOUT_S if left is None else min(left, _CONNECT_TIMEOUT_S)

    def check(self) -> None:
        """Raise if the time is up: a slow trickle of data satisfies every single read."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise too_late(self._timeout_s)


def failure(error: Exception, location: str, timeout_s: float | None) -> HeadraceError:
    """Return the error for an exception of httpx; `where` is the server."""
    of_tls = tls_failure(str(error)) if isinstance(error, httpx.NetworkError) else None
    return of_tls or _failure(error, location, timeout_s)


def _failure(error: Exception, location: str, timeout_s: float | None) -> HeadraceError:
    match error:
        case httpx.ConnectError():
            message = f"cannot connect to {location}: {error}; check the address, and that it runs"
            return UnavailableError(message, retry_after_s=None)
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return UnavailableError(f"cannot connect to {location} in time", retry_after_s=None)
        case httpx.TimeoutException():
            return too_late(timeout_s)
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            return ConnectionLostError(
                f"connection to {location} lost: {str(error) or type(error).__name__}"
            )
        case httpx.DecodingError():
            return ProtocolError(f"the server's answer cannot be decoded: {error}")
        case _:
            return InvalidArgumentError(f"the request cannot be sent: {error}")


def _where(target: ServerAddress) -> str:
    return f"unix:{target.uds}" if target.uds else target.base_url


def _extensions(options: ConnectionOptions) -> dict[str, Any]:
    name = options.trust.server_name
    return {"sni_hostname": name} if name else {}


def _options(target: ServerAddress, options: ConnectionOptions) -> dict[str, Any]:
    return {
        "base_url": target.base_url,
        "headers": {"user-agent": "headrace", **options.headers},
        "auth": options.credentials,
        # Loading the certificate authorities takes 20 ms, and plain HTTP needs none.
        "verify": tls_context(options.trust) if target.tls else False,
        "trust_env": not target.is_loopback,
        # Credentials are for this server, not for the target of a redirect.
        "follow_redirects": False,
    }


def _timeout_header(timeout_s: float | None) -> dict[str, str]:
    return {} if timeout_s is None else {TIMEOUT_HEADER: f"{timeout_s:.6f}"}


def _reply(response: httpx.Response, body: bytes) -> HttpReply:
    return HttpReply(status=response.status_code, headers=response.headers, body=body)
