"""Wire format and transport of a target; gRPC is imported only if it is needed.

Drivers of conversations over a transport, one that blocks and one for an event loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from headrace.client.answers import too_late
from headrace.client.conversation import Conversation, ResultT, SendMessage
from headrace.client.credentials import ConnectionOptions, ServerAddress
from headrace.client.http_transport import AsyncHttpTransport, BlockingHttpTransport
from headrace.client.http_wire import HttpWire
from headrace.client.session import ProtocolWire
from headrace.core import HeadraceError


class BlockingTransport(Protocol):
    """Transport that sends one message at a time and blocks; thread-safe."""

    def send(self, send: SendMessage) -> object:
        """Return the reply to `send.message`; raise a HeadraceError if there is none."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """Transport that sends messages for one event loop."""

    async def send(self, send: SendMessage) -> object:
        """Return the reply to `send.message`; raise a HeadraceError if there is none."""

    async def aclose(self) -> None:
        """Close the connections."""


def wire_for(target: ServerAddress) -> ProtocolWire:
    """Return the wire format of `target`."""
    if target.protocol == "http":
        return HttpWire()
    from headrace.client.grpc_wire import GrpcWire  # noqa: PLC0415  # heavy, and often not needed

    return GrpcWire()


def blocking_transport(target: ServerAddress, manner: ConnectionOptions) -> BlockingTransport:
    """Return a blocking transport to `target`."""
    if target.protocol == "http":
        return BlockingHttpTransport(target, manner)
    from headrace.client.grpc_transport import BlockingGrpcTransport  # noqa: PLC0415  # as above

    return BlockingGrpcTransport(target, manner)


def async_transport(target: ServerAddress, manner: ConnectionOptions) -> AsyncTransport:
    """Return a transport to `target` for an event loop."""
    if target.protocol == "http":
        return AsyncHttpTransport(target, manner)
    from headrace.client.grpc_transport import AsyncGrpcTransport  # noqa: PLC0415  # as above

    return AsyncGrpcTransport(target, manner)


def run_blocking(
    conversation: Conversation[ResultT],
    transport: BlockingTransport,
    *,
    pause: Callable[[float], object] = time.sleep,
) -> ResultT:
    """Return the result of a conversation; `pause` waits for that many seconds.

    Raises:
        HeadraceError: The error of the conversation.
    """
    try:
        step = next(conversation)
        while True:
            try:
                if isinstance(step, SendMessage):
                    reply = transport.send(step)
                else:
                    reply = pause(step.delay_s)
            except HeadraceError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(reply)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result


async def run_async(
    conversation: Conversation[ResultT],
    transport: AsyncTransport,
    *,
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> ResultT:
    """Return the result of a conversation as `run_blocking` does, on the event loop."""
    try:
        step = next(conversation)
        while True:
            try:
                if isinstance(step, SendMessage):
                    async with asyncio.timeout(step.timeout_s):
                        reply = await transport.send(step)
                else:
                    reply = await pause(step.delay_s)
            except TimeoutError:
                assert isinstance(step, SendMessage), "pauses have no timeout"
                step = conversation.throw(too_late(step.timeout_s))
            except HeadraceError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(reply)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result
