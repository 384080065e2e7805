"""HTTP/1.1 client for Headrace's processes: one request per connection, over a Unix socket or TCP.

It needs no HTTP library, whose import would double the start time of the control plane. httpx is
used for other servers.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from headrace.core import DeadlineExceededError, HeadraceError, UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.headers import CONTROL_HEADER
from headrace.core.internal_token import internal_token

_LOG: Final = logging.getLogger("headrace.control")
T = TypeVar("T")
_OK: Final = 200
_MAX_HEAD_BYTES: Final = 64 << 10
_DEFAULT_LIMIT_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResponse:
    """HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def fetch(
    address: str,
    path: str,
    *,
    timeout_s: float,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    limit_bytes: int = _DEFAULT_LIMIT_BYTES,
) -> FetchResponse:
    """Return the response of `address` (`unix:/path` or `host:port`) to one request.

    Raises:
        DeadlineExceededError: It took longer than `timeout_s`.
        UnavailableError: No process listens, the response is not HTTP, or it is longer than
            `limit_bytes`.
    """
    head = {
        "host": "localhost" if address.startswith("unix:") else address,
        "connection": "close",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    if path.startswith("/internal/") and not address.startswith("unix:"):
        head |= _token()
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    request = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(address, request, limit_bytes)
    except TimeoutError:
        message = f"{address} did not answer {method} {path} within {timeout_s:g} s"
        raise DeadlineExceededError(message) from None
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise UnavailableError(f"no answer from {address}: {error}") from error


async def ask(
    address: str,
    path: str,
    decode: Callable[[bytes], T],
    *,
    timeout_s: float,
    method: str = "GET",
    body: bytes = b"",
) -> T | None:
    """Return the decoded response of a Headrace process; None if it fails, refuses or is invalid.

    The process may be starting, hanging, or of an older version: its supervisor handles that.
    """
    try:
        answer = await fetch(address, path, timeout_s=timeout_s, method=method, body=body)
        if answer.status != _OK:
            return None
        return decode(answer.body)
    except (HeadraceError, *UNDECODABLE) as error:
        extra = {"address": address, "path": path, "error": str(error)}
        _LOG.debug("the process does not answer", extra=extra)
        return None


def text_of(body: bytes) -> str:
    """Return a body as text; invalid UTF-8 is replaced."""
    return body.decode("utf-8", "replace")


def _token() -> dict[str, str]:
    """Return the header by which a replica on another host authenticates the control plane."""
    token = internal_token()
    return {CONTROL_HEADER: token.decode("ascii")} if token else {}


async def _exchange(address: str, request: bytes, limit_bytes: int) -> FetchResponse:
    reader, writer = await _connect(address)
    try:
        writer.write(request)
        await writer.drain()
        status, headers = await _read_head(reader)
        body = await _read_body(reader, headers, limit_bytes)
    finally:
        writer.transport.abort()  # one request per connection: no reason to wait
    return FetchResponse(status=status, headers=headers, body=body)


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return await asyncio.open_unix_connection(path, limit=_MAX_HEAD_BYTES)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), limit=_MAX_HEAD_BYTES)


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"{first[:40]!r} is not an HTTP status line")
    pairs = (line.partition(":") for line in lines if line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_body(
    reader: asyncio.StreamReader, headers: Mapping[str, str], limit_bytes: int
) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        return await _read_chunks(reader, limit_bytes)
    if "content-length" in headers:
        length = int(headers["content-length"])
        _check_size(length, limit_bytes)
        return await reader.readexactly(length)
    parts: list[bytes] = []
    size = 0
    while part := await reader.read(_MAX_HEAD_BYTES):
        size += len(part)
        _check_size(size, limit_bytes)
        parts.append(part)
    return b"".join(parts)


async def _read_chunks(reader: asyncio.StreamReader, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        line = await reader.readuntil(b"\r\n")
        length = int(line.partition(b";")[0], 16)
        if length == 0:
            return b"".join(parts)
        size += length
        _check_size(size, limit_bytes)
        parts.append(await reader.readexactly(length))
        await reader.readexactly(2)


def _check_size(size: int, limit_bytes: int) -> None:
    if not 0 <= size <= limit_bytes:
        raise ValueError(f"the body has {size} bytes, more than the {limit_bytes} allowed")
