"""gRPC transport with grpcio; imported only for `grpc://` URLs."""

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import msgspec

from headrace.client.answers import tls_failure
from headrace.client.conversation import SendMessage
from headrace.client.credentials import ConnectionOptions, ServerAddress, Trust, read_pem
from headrace.core import HeadraceError, PayloadTooLargeError
from headrace.protocol import error_from_grpc, error_from_http

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS: Final = (
    # Tensors are large, and the server has a limit.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The client retries, within its budget; two layers of retries would multiply.
    ("grpc.enable_retries", 0),
    # By default a channel that lost its server may wait for two minutes before it reconnects.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.primary_user_agent", "headrace"),
)
_TOO_LARGE: Final = re.compile(r"Received message larger than max \((\d+) vs\. (\d+)\)")
_GATEWAY_TOO_LARGE: Final = frozenset({"request too long", "content length too large"})
"""Envoy's texts for a body over its limit, which it also reports as RESOURCE_EXHAUSTED."""


class GrpcMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Message of a call: the full method's name, the request's bytes, metadata."""

    method: str
    body: bytes
    metadata: tuple[tuple[str, str], ...] = ()


class BlockingGrpcTransport:
    """Channel to one server."""

    def __init__(self, target: ServerAddress, manner: ConnectionOptions) -> None:
        self._headers = _metadata(manner)
        options = _options(target, manner.trust)
        self._channel = (
            grpc.secure_channel(target.authority, _channel_credentials(manner.trust), options)
            if target.tls
            else grpc.insecure_channel(target.authority, options)
        )
        self._methods: dict[str, Callable[..., bytes]] = {}

    def send(self, send: SendMessage) -> bytes:
        """Return the bytes of the server's response, or raise the error of its status."""
        message: GrpcMessage = send.message
        method = self._methods.get(message.method)
        if method is None:
            method = self._methods[message.method] = self._channel.unary_unary(message.method)
        try:
            return method(
                message.body, timeout=send.timeout_s, metadata=self._headers + message.metadata
            )
        except grpc.RpcError as error:
            raise failure(error) from error

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """Channel to one server, for one event loop; opened by the first call."""

    def __init__(self, target: ServerAddress, manner: ConnectionOptions) -> None:
        self._headers = _metadata(manner)
        self._target = target
        self._options = _options(target, manner.trust)
        self._credentials = _channel_credentials(manner.trust) if target.tls else None
        self._channel: Any = None
        self._methods: dict[str, Callable[..., Any]] = {}

    async def send(self, send: SendMessage) -> bytes:
        """Return the bytes of the server's response, or raise the error of its status."""
        message: GrpcMessage = send.message
        method = self._methods.get(message.method)
        if method is None:
            method = self._methods[message.method] = self._open().unary_unary(message.method)
        try:
            body: bytes = await method(
                message.body, timeout=send.timeout_s, metadata=self._headers + message.metadata
            )
        except grpc.RpcError as error:
            raise failure(error) from error
        return body

    async def aclose(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    def _open(self) -> Any:  # noqa: ANN401  # grpcio has no types
        if self._channel is None:
            location = self._target.authority
            self._channel = (
                grpc.aio.insecure_channel(location, self._options)
                if self._credentials is None
                else grpc.aio.secure_channel(location, self._credentials, self._options)
            )
        return self._channel


def failure(error: grpc.RpcError) -> HeadraceError:
    """Return the error for a failed call."""
    details = error.details() or ""
    # grpcio's servers report a size limit, which is permanent, with the status for "overloaded".
    sizes = _TOO_LARGE.search(details)
    if sizes is not None:
        return PayloadTooLargeError(got_bytes=int(sizes[1]), limit_bytes=int(sizes[2]))
    if details in _GATEWAY_TOO_LARGE:
        return error_from_http(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, details.encode())
    if (failure := tls_failure(details)) is not None:
        return failure
    trailing = error.trailing_metadata() or ()
    return error_from_grpc(error.code().value[0], details, tuple(trailing))


def _channel_credentials(trust: Trust) -> Any:  # noqa: ANN401  # grpcio has no types
    return grpc.ssl_channel_credentials(
        root_certificates=read_pem("ca_file", trust.ca_file),
        private_key=read_pem("client_certificate", trust.key_file),
        certificate_chain=read_pem("client_certificate", trust.certificate_file),
    )


def _options(target: ServerAddress, trust: Trust) -> tuple[tuple[str, object], ...]:
    proxies = () if not target.is_loopback else (("grpc.enable_http_proxy", 0),)
    name = trust.server_name
    names = (("grpc.ssl_target_name_override", name),) if name else ()
    return (*_OPTIONS, *proxies, *names)


def _metadata(manner: ConnectionOptions) -> tuple[tuple[str, str], ...]:
    both = {**manner.headers, **manner.credentials.headers}
    return tuple((name.lower(), value) for name, value in both.items())
