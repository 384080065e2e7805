"""Messages of every rpc except infer: requests, and responses from the documents of REST."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from headrace.core import InvalidArgumentError, UnsupportedError
from headrace.protocol.grpc_wire import length_delimited
from headrace.protocol.protos import HEALTH_SERVICE, INFERENCE_SERVICE, message_class, methods

_SHOWN: Final = 200
_LONGEST_REQUEST: Final = 1 << 20
"""Only infer carries tensors; a parsed message may take forty times its bytes."""
_INFER_RESPONSE_FIELD: Final = 2
_StreamResponse: Final = message_class("inference.ModelStreamInferResponse")


def rpc_names(service: str = INFERENCE_SERVICE) -> tuple[str, ...]:
    """Return the rpcs of a service, streaming ones included."""
    return tuple(_methods(service))


def parse_request(
    rpc: str, message: bytes | memoryview, *, service: str = INFERENCE_SERVICE
) -> Any:  # noqa: ANN401  # protobuf's classes are made at run time
    """Return the request message of an rpc, for example with `name` and `version`.

    Raises:
        UnsupportedError: The service has no such rpc.
        InvalidArgumentError: The bytes are not such a message, or exceed its limit.
    """
    request, _ = _method(service, rpc)
    if len(message) > _LONGEST_REQUEST:
        msg = f"the {rpc} request has {len(message)} bytes, more than {_LONGEST_REQUEST}"
        raise InvalidArgumentError(msg)
    try:
        return request.FromString(message)
    except DecodeError as error:
        msg = f"failed to parse the {rpc} request: {str(error)[:_SHOWN]}"
        raise InvalidArgumentError(msg) from None


def encode_response(
    rpc: str, document: Mapping[str, Any], *, service: str = INFERENCE_SERVICE
) -> bytes:
    """Return the serialised response of an rpc, from its fields.

    The documents of `headrace.protocol.metadata` fit. `ModelConfig` takes its document as
    `{"config": ...}`, `RepositoryIndex` as `{"models": [...]}`, and `ServerReady` takes `{"ready":
    True}`. A field that the message does not have is a bug, and json_format raises.
    """
    _, response = _method(service, rpc)
    message = json_format.ParseDict(dict(document), response())
    return _serialised(message)


def encode_health(*, serving: bool) -> bytes:
    """Return a serialised `grpc.health.v1.HealthCheckResponse`."""
    status = "SERVING" if serving else "NOT_SERVING"
    return encode_response("Check", {"status": status}, service=HEALTH_SERVICE)


def encode_stream_response(response: bytes) -> bytes:
    """Return a serialised `ModelInferResponse` as one message of the response stream."""
    return length_delimited(_INFER_RESPONSE_FIELD, response)


def encode_stream_error(text: str, *, request_id: str = "") -> bytes:
    """Return an error as one message of the response stream; the id identifies the request."""
    message = _StreamResponse(error_message=text)
    if request_id:
        message.infer_response.id = request_id
    return _serialised(message)


def _serialised(message: Any) -> bytes:  # noqa: ANN401  # as above
    serialised: bytes = message.SerializeToString()
    return serialised


@cache
def _methods(service: str) -> dict[str, tuple[Any, Any]]:
    return methods(service)


def _method(service: str, rpc: str) -> tuple[Any, Any]:
    method = _methods(service).get(rpc)
    if method is None:
        msg = f"service {service} has no rpc '{rpc[:_SHOWN]}'"
        raise UnsupportedError(msg)
    return method
