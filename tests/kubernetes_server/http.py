"""A small HTTP/1.1 server whose connections can be held, cut and slowed at will."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

_MAX_HEAD: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body."""
        found: dict[str, Any] = json.loads(self.body or b"{}")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer: a document, lines as they come, or a page as it is."""

    status: int = 200
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    lines: AsyncIterator[object] | None = None
    page: bytes | None = None


class HangUpError(Exception):
    """End the connection without an answer."""


Handle = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True)
class HttpServer:
    """Serves `handle`, at a port that it picks where `port` is 0."""

    handle: Handle
    host: str = "127.0.0.1"
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(
            self._accept, self.host, self.port, limit=_MAX_HEAD
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await _read(reader)) is not None:
                await _write(writer, await self.handle(request))
        except (HangUpError, ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    url = urlsplit(target)
    return Request(
        method=method,
        path=unquote(url.path),
        query=dict(parse_qsl(url.query, keep_blank_values=True)),
        headers=headers,
        body=body,
    )


async def _write(writer: asyncio.StreamWriter, response: Response) -> None:
    headers = {"content-type": "application/json", **response.headers}
    if response.lines is not None:
        headers["transfer-encoding"] = "chunked"
        writer.write(_head(response.status, headers))
        async with contextlib.aclosing(response.lines) as lines:  # type: ignore[type-var]  # a generator
            async for line in lines:
                data = json.dumps(line).encode() + b"\n"
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
                await writer.drain()
        writer.write(b"0\r\n\r\n")
    else:
        data = json.dumps(response.body).encode() if response.page is None else response.page
        headers["content-length"] = str(len(data))
        writer.write(_head(response.status, headers) + data)
    await writer.drain()


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode("latin-1")
