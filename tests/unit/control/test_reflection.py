"""Reflection streams over HTTP/1.1, message by message."""

import asyncio
from typing import Any

import pytest

from headrace.control.asgi.guards import Message, Receive, Scope, Send, respond
from headrace.control.asgi.reflection import ReflectionApp
from headrace.protocol.grpc_wire import frame, unframe
from tests.unit.protocol.test_reflection import PACKAGE, REQUEST, RESPONSE

pytestmark = pytest.mark.anyio
PATH = f"/{PACKAGE}.ServerReflection/ServerReflectionInfo"
ALPHA = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST = frame(REQUEST(list_services="*").SerializeToString())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def other(_scope: Scope, _receive: Receive, send: Send) -> None:
    await respond(send, 204, "", b"")


class Stream:
    """An open request to the application."""

    def __init__(self, path: str = PATH, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        scope: dict[str, Any] = {"type": "http", "path": path, "headers": list(headers)}
        app = ReflectionApp(fallback=other)
        self.task = asyncio.ensure_future(app(scope, self.received.get, self.sent.put))

    async def send(self, body: bytes, *, more: bool = True) -> None:
        await self.received.put({"type": "http.request", "body": body, "more_body": more})

    async def next(self) -> Message:
        return await asyncio.wait_for(self.sent.get(), 30)

    async def names(self) -> list[str]:
        message = await self.next()
        response = RESPONSE.FromString(bytes(unframe(message["body"])))
        return [item.name for item in response.list_services_response.service]


@pytest.mark.parametrize("path", [PATH, ALPHA])
async def test_each_request_is_answered_while_the_stream_is_open(path: str) -> None:
    stream = Stream(path)

    for count in range(3):
        await stream.send(LIST[:4])
        await stream.send(LIST[4:])
        if count == 0:
            start = await stream.next()
            assert (start["status"], start["headers"][0][1]) == (200, b"application/grpc")
        assert "inference.GRPCInferenceService" in await stream.names()
    await stream.send(b"", more=False)
    assert await stream.next() == {"type": "http.response.body", "body": b"", "more_body": False}
    await stream.task


async def test_several_requests_in_one_part_are_answered_in_order() -> None:
    stream = Stream()
    await stream.send(LIST + LIST, more=False)

    await stream.next()
    assert await stream.names() == await stream.names()
    assert not (await stream.next())["more_body"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(frame(b"\xff\xff"), b"3"), (b"\x00\xff\xff\xff\xff", b"8"), (b"\x01\x00\x00\x00\x00", b"12")],
)
async def test_a_first_message_that_cannot_be_read_is_a_status(body: bytes, status: bytes) -> None:
    stream = Stream()
    await stream.send(body)

    assert dict((await stream.next())["headers"])[b"grpc-status"] == status
    await asyncio.wait_for(stream.task, 30)


async def test_a_caller_that_leaves_ends_the_stream() -> None:
    stream = Stream()
    await stream.received.put({"type": "http.disconnect"})

    await asyncio.wait_for(stream.task, 30)
    assert stream.sent.empty()


async def test_other_requests_go_on() -> None:
    stream = Stream("/v2/models/stats")

    assert (await stream.next())["status"] == 204
