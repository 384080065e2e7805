"""gRPC server reflection over HTTP/1.1, as Envoy's reverse bridge carries it.

A reflection client waits for each response before it sends the next request, so messages are
answered while the request's body is still open.
"""

import asyncio
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Final

from headrace.control.asgi.guards import App, Message, Receive, Scope, Send, respond
from headrace.core import HeadraceError, PayloadTooLargeError
from headrace.gateway import REFLECTION_PREFIX
from headrace.protocol import grpc_status
from headrace.protocol.grpc_wire import frame, grpc_message, unframe

_MODULE: Final = "headrace.protocol.reflection"
_GRPC: Final = "application/grpc"
_OK: Final = 200
_PREFIX: Final = struct.Struct(">BI")
_MAX_BYTES: Final = 1 << 16
"""Limit of one request; it holds one name."""
_MAX_MESSAGES: Final = 1000
"""Limit of the requests in one stream."""


@dataclass(slots=True, kw_only=True)
class ReflectionApp:
    """ASGI application that answers reflection streams; `fallback` gets the other requests."""

    fallback: App

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one stream."""
        path: str = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith(REFLECTION_PREFIX):
            await self.fallback(scope, receive, send)
            return
        # Loads protobuf, which few control planes need.
        answer = (await asyncio.to_thread(import_module, _MODULE)).answer_reflection
        encoding = dict(scope["headers"]).get(b"grpc-encoding", b"")
        frames = _Frames()
        is_open, has_begun, count = True, False, 0
        try:
            while is_open and count < _MAX_MESSAGES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                is_open = message.get("more_body", False)
                for request in frames.feed(message.get("body", b"")):
                    data = frame(answer(bytes(unframe(request, encoding, _MAX_BYTES))))
                    count += 1
                    if not has_begun:
                        has_begun = True
                        await send(_start())
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except HeadraceError as error:
            if not has_begun:
                fields = [
                    (b"grpc-status", b"%d" % grpc_status(error)),
                    (b"grpc-message", grpc_message(str(error)).encode()),
                ]
                await respond(send, _OK, _GRPC, b"", fields)
                return
        if not has_begun:
            await send(_start())
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _start() -> Message:
    headers = [(b"content-type", _GRPC.encode())]
    return {"type": "http.response.start", "status": _OK, "headers": headers}


@dataclass(slots=True)
class _Frames:
    """Complete gRPC frames of a body that arrives in parts."""

    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add a part of the body and yield the frames that are complete.

        Raises:
            PayloadTooLargeError: A frame is larger than a reflection request can be.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _PREFIX.size:
            end = _PREFIX.size + _PREFIX.unpack_from(buffer)[1]
            if end > _MAX_BYTES:
                raise PayloadTooLargeError(limit_bytes=_MAX_BYTES)
            if len(buffer) < end:
                return
            yield bytes(buffer[:end])
            del buffer[:end]
