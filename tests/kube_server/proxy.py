"""Proxy in front of an API server that refuses, delays, cuts and records requests."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

import httpx2

from headrace.control.kubernetes.api import RESOURCES
from tests.kube_server.namespace import Object, TestNamespace

_MAX_HEAD: Final = 64 << 10
_KINDS: Final = {resource.plural: resource.kind for resource in RESOURCES.values()}
_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PASSED_ON: Final = ("content-type", "accept", "user-agent")


@dataclass(slots=True, kw_only=True)
class Fault:
    """Treatment of the next `times` requests that it is about."""

    verbs: frozenset[str] = frozenset()
    """Empty for all; so is `kind`."""
    kind: str = ""
    times: int = 1
    status: int = 0
    """HTTP status to answer with, with `message`; 0 passes the request on."""
    message: str = "a fault that a test asked for"
    page: bytes = b""
    """Body to answer with; of a watch it is all that comes."""
    hang_up: bool = False
    """End the connection instead."""
    after: bool = False
    """Only once the server has carried the request out, so that the client cannot know."""
    delay_s: float = 0.0

    def is_about(self, verb: str, kind: str) -> bool:
        """Return whether a request is meant."""
        is_meant = (not self.verbs or verb in self.verbs) and self.kind in {"", kind}
        return self.times > 0 and is_meant


@dataclass(slots=True)
class Proxy:
    """Proxy on loopback, as an async context; `rules` are all that its clients may do."""

    namespace: TestNamespace
    rules: list[Object]
    faults: list[Fault] = field(default_factory=list)
    longest_watch_s: float = 300.0
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    """Group, resource and verb of all requests; a patch that makes an object counts as `create`."""
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Client, verb, kind and name of each write, in order."""
    url: str = ""
    _cut: set[str] = field(default_factory=set)
    _healed: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _sending: set[asyncio.Task[httpx2.Response]] = field(default_factory=set)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _http: httpx2.AsyncClient = field(init=False)

    async def __aenter__(self) -> Self:
        token = self.namespace.token("proxy", self.rules)
        cluster = self.namespace.lab.cluster
        self._http = await self._stack.enter_async_context(cluster.http(token))
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_MAX_HEAD)
        self._stack.callback(server.close)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._sending, return_exceptions=True)
        await self._stack.aclose()

    def cut_off(self, client: str) -> None:
        """Answer no request, and send no event, to clients whose user agent has this in it."""
        self._cut.add(client)

    def heal(self) -> None:
        """Let all requests through again."""
        self._cut.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    async def _wait_uncut(self, client: str) -> None:
        while any(part in client for part in self._cut):
            await self._healed.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.partition(":") for line in head[1:])
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, target, _ = head[0].split(" ")
                await self._answer(writer, method, target, headers, body)
                await writer.drain()
        except (_HangUpError, OSError, EOFError, httpx2.HTTPError, asyncio.CancelledError):
            pass  # each ends the connection, as a network does
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> None:
        client = headers.get("user-agent", "")
        await self._wait_uncut(client)
        url = urlsplit(target)
        # /api/v1/namespaces/NAME/RESOURCE/NAME, or /apis/GROUP/VERSION/namespaces/...
        parts = url.path.strip("/").split("/")
        group, rest = ("", parts[4:]) if parts[0] == "api" else (parts[1], parts[5:])
        kind, name = _KINDS[rest[0]], rest[1] if len(rest) > 1 else ""
        is_watch = "watch" in parse_qs(url.query)
        verb = _VERBS.get(method) or ("get" if name else "watch" if is_watch else "list")
        self.seen.add((group, rest[0], verb))
        fault = next((one for one in self.faults if one.is_about(verb, kind)), None)
        if fault is not None:
            fault.times -= 1
            if not fault.after:
                await asyncio.sleep(fault.delay_s)
                if _fail(fault, writer):
                    return
        if verb in _VERBS.values():
            self.requests.append((client, verb, kind, name))
        passed_on = {key: headers[key] for key in _PASSED_ON if key in headers}
        request = self._http.build_request(
            method, target, content=body, headers=passed_on, timeout=None if is_watch else 30.0
        )
        # A client that is cancelled while it connects would leave its socket open.
        sending = asyncio.create_task(self._http.send(request, stream=True))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        answer = await asyncio.shield(sending)
        if verb == "patch" and answer.status_code == HTTPStatus.CREATED:
            self.seen.add((group, rest[0], "create"))
        try:
            if is_watch and answer.is_success:
                await self._stream(writer, answer, client)
                return
            content = await answer.aread()
        finally:
            await answer.aclose()
        if fault is not None and fault.after and _fail(fault, writer):
            return
        await self._wait_uncut(client)
        retry = answer.headers.get("retry-after", "")
        _write(writer, answer.status_code, content, retry_after=retry)

    async def _stream(
        self, writer: asyncio.StreamWriter, answer: httpx2.Response, client: str
    ) -> None:
        """Pass events on, until the longest time of a watch is over."""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.longest_watch_s):
                async for line in answer.aiter_lines():
                    await self._wait_uncut(client)
                    data = line.encode() + b"\n"
                    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
                    await writer.drain()
        writer.write(b"0\r\n\r\n")


class _HangUpError(Exception):
    """The connection ends without an answer."""


def _fail(fault: Fault, writer: asyncio.StreamWriter) -> bool:
    """Answer in place of the server; return whether there is an answer."""
    if fault.hang_up:
        raise _HangUpError
    if not fault.status and not fault.page:
        return False
    document: Object = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    document |= {"code": fault.status, "reason": "Scripted", "message": fault.message}
    page = fault.page or json.dumps(document).encode()
    _write(writer, fault.status or 200, page)
    return True


def _write(
    writer: asyncio.StreamWriter, status: int, body: bytes, *, retry_after: str = ""
) -> None:
    more = f"retry-after: {retry_after}\r\n" if retry_after else ""
    head = f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\n{more}"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode("latin-1") + body)
