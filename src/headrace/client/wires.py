"""Wire format and transport of a target; gRPC is imported only if it is needed."""

from typing import Protocol

from headrace.client.conversation import SendMessage
from headrace.client.credentials import ConnectionOptions, ServerAddress
from headrace.client.http_transport import AsyncHttpTransport, BlockingHttpTransport
from headrace.client.http_wire import HttpWire
from headrace.client.session import ProtocolWire


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
