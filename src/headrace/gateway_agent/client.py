"""HTTP client of the control plane over mutual TLS, with bounded responses."""

import socket
import ssl
from dataclasses import dataclass, field
from typing import Final

import httpx
import msgspec

from headrace.control.agents.messages import (
    FORWARD_PATH,
    MAX_BUNDLE_BYTES,
    POLL_PATH,
    REPORT_PATH,
    AgentInstructions,
    AgentStatus,
    Poll,
    Refused,
    decode_instructions,
)
from headrace.core import InvalidArgumentError, PermissionDeniedError, UnavailableError
from headrace.core.error_kind import UNDECODABLE

_CONNECT_S: Final = 5.0
_REPORT_BYTES: Final = 64 << 10
_FORWARD_S: Final = 10.0
_FORWARD_BYTES: Final = 64 << 20
_OK: Final = 200
_DENIED: Final = 403
_NOTICES_A_CUT: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Keepalive options: a poll waits long, and a failed host sends nothing; the kernel detects it
after 9 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResponse:
    """Response of the control plane."""

    status: int
    content_type: str
    body: bytes


@dataclass(slots=True)
class ControlClient:
    """Client of the control plane at `url`. Waits and response sizes are limited."""

    url: str
    context: ssl.SSLContext
    max_bytes: int = MAX_BUNDLE_BYTES
    answer_s: float = 10.0
    _client: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self._client = httpx.AsyncClient(
            base_url=self.url,
            trust_env=False,
            follow_redirects=False,
            transport=httpx.AsyncHTTPTransport(
                verify=self.context,
                trust_env=False,
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=8),
                socket_options=_NOTICES_A_CUT,
            ),
        )

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def poll(self, poll: Poll) -> AgentInstructions:
        """Return instructions newer than the agent's, as soon as there are any.

        Raises:
            HeadraceError: The response is missing or invalid.
        """
        answer = await self._ask(
            "POST",
            POLL_PATH,
            msgspec.json.encode(poll),
            timeout_s=poll.wait_s + self.answer_s,
            limit_bytes=self.max_bytes,
        )
        return decode_instructions(_content(answer))

    async def report(self, report: AgentStatus) -> None:
        """Report this gateway's state; errors as `poll`."""
        answer = await self._ask(
            "POST",
            REPORT_PATH,
            msgspec.json.encode(report),
            timeout_s=self.answer_s,
            limit_bytes=_REPORT_BYTES,
        )
        _content(answer)

    async def forward(
        self, method: str, path: str, body: bytes, *, content_type: str
    ) -> ControlResponse:
        """Return the control plane's response to a caller of this gateway; errors as `poll`."""
        return await self._ask(
            method,
            f"{FORWARD_PATH}{path}",
            body,
            timeout_s=_FORWARD_S,
            limit_bytes=_FORWARD_BYTES,
            content_type=content_type,
        )

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        timeout_s: float,
        limit_bytes: int,
        content_type: str = "application/json",
    ) -> ControlResponse:
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        headers = {"content-type": content_type} if content_type else {}
        try:
            async with self._client.stream(
                method, path, content=body, headers=headers, timeout=timeout
            ) as response:
                parts: list[bytes] = []
                size = 0
                async for part in response.aiter_raw():
                    size += len(part)
                    if size > limit_bytes:
                        raise InvalidArgumentError(f"the answer has more than {limit_bytes} bytes")
                    parts.append(part)
                received = b"".join(parts)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"no answer from {self.url}: {reason}") from error
        return ControlResponse(
            status=response.status_code,
            content_type=response.headers.get("content-type", ""),
            body=received,
        )


def _content(answer: ControlResponse) -> bytes:
    """Return the body of a successful response.

    Raises:
        HeadraceError: The response is an error; the message contains it.
    """
    if answer.status == _OK:
        return answer.body
    try:
        message = msgspec.json.decode(answer.body, type=Refused).message
    except UNDECODABLE:
        raise UnavailableError(
            f"the server answered {answer.status} and is not a control plane for agents"
        ) from None
    if answer.status == _DENIED:
        raise PermissionDeniedError(message)
    raise UnavailableError(f"the control plane rejected the request: {message}")
