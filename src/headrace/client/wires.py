"""Wire format and transport of a target; gRPC is imported only if it is needed."""

from typing import Protocol

from headrace.client.conversation import SendMessage
from headrace.client.credentials import ConnectionOptions, ServerAddress
from headrace.client.http_transport import AsyncHttpTransport, BlockingHttpTransport
from headrace.client.http_wire import HttpWire
from headrace.client.session import ProtocolWire


class BlockingTransport(Protocol):
    """Carries one message at a time over the network, blocking; thread-safe."""

    def send(self, send: SendMessage) -> object:
        """The reply to `send.message`; raises a HeadraceError where none came."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """Carries messages over the network for one event loop."""

    async def send(self, send: SendMessage) -> object:
        """The reply to `send.message`; raises a HeadraceError where none came."""

    async def aclose(self) -> None:
        """Close the connections."""


def wire_for(target: ServerAddress) -> ProtocolWire:
    """The messages that `target` understands."""
    if target.protocol == "http":
        return HttpWire()
    from headrace.client.grpc_wire import GrpcWire  # noqa: PLC0415  # heavy, and often not needed

    return GrpcWire()


def blocking_transport(target: ServerAddress, manner: ConnectionOptions) -> BlockingTransport:
    """A way to `target` that blocks."""
    if target.protocol == "http":
        return BlockingHttpTransport(target, manner)
    from headrace.client.grpc_transport import BlockingGrpcTransport  # noqa: PLC0415  # as above

    return BlockingGrpcTransport(target, manner)


def async_transport(target: ServerAddress, manner: ConnectionOptions) -> AsyncTransport:
    """A way to `target` for an event loop."""
    if target.protocol == "http":
        return AsyncHttpTransport(target, manner)
    from headrace.client.grpc_transport import AsyncGrpcTransport  # noqa: PLC0415  # as above

    return AsyncGrpcTransport(target, manner)
