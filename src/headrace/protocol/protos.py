"""Protobuf messages of the inference protocol and of Envoy's rate limit service.

The protocol's messages are in a separate descriptor pool: Triton's client registers the same full
names in protobuf's default pool, and both must work in one process.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from headrace.core import InvalidArgumentError
from headrace.protocol.grpc_wire import DESCRIPTOR_SET_PATH, RLS_DESCRIPTOR_SET_PATH

INFERENCE_SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"


def load_pool(path: Path) -> descriptor_pool.DescriptorPool:
    """Return a new pool with the descriptor set at `path`."""
    pool = descriptor_pool.DescriptorPool()
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    for file in descriptors.file:
        pool.Add(file)
    return pool


def message_of(pool: descriptor_pool.DescriptorPool, full_name: str) -> Any:  # noqa: ANN401  # protobuf makes the class at run time
    """Return the class of a message in `pool`; KeyError if unknown."""
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    return load_pool(DESCRIPTOR_SET_PATH)


def message_class(full_name: str) -> Any:  # noqa: ANN401  # protobuf makes the class at run time
    """Return a message class, for example `inference.ModelInferRequest`; KeyError if unknown."""
    return message_of(_pool(), full_name)


def methods(service: str) -> dict[str, tuple[type[Message], type[Message]]]:
    """Return the request and response class of each rpc of a service, by the rpc's name."""
    descriptor = _pool().FindServiceByName(service)
    return {
        method.name: (
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in descriptor.methods
    }


RLS_SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
RLS_METHOD: Final = "ShouldRateLimit"
_OK: Final = 1
_OVER_LIMIT: Final = 2


class Descriptor(msgspec.Struct, frozen=True):
    """Descriptor of one request."""

    entries: Mapping[str, str]
    hits: int | None
    """Number of hits; None if unset."""


class RateLimitQuestion(msgspec.Struct, frozen=True):
    """Rate limit request of Envoy's rate limit service; `domain` names its configuration."""

    domain: str
    descriptors: Sequence[Descriptor]


class RateLimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Rate limit decision; `body` is the text of a refusal.

    Headers are added to the caller's response, and to the request that is forwarded.
    """

    is_allowed: bool
    response_headers: Mapping[str, str] = {}
    request_headers: Mapping[str, str] = {}
    body: str = ""


class RateLimitCodec:
    """Codec of rate limit messages; created once, because it loads the descriptors."""

    def __init__(self) -> None:
        pool = load_pool(RLS_DESCRIPTOR_SET_PATH)
        package = RLS_SERVICE.rpartition(".")[0]
        self._request: Any = message_of(pool, f"{package}.RateLimitRequest")
        self._response: Any = message_of(pool, f"{package}.RateLimitResponse")

    def decode(self, data: bytes) -> RateLimitQuestion:
        """Return the rate limit request.

        Raises:
            InvalidArgumentError: The bytes are not such a message.
        """
        try:
            message = self._request.FromString(data)
        except DecodeError as error:
            raise InvalidArgumentError(f"not a rate limit request: {error}") from None
        shared = message.hits_addend or None
        return RateLimitQuestion(
            message.domain,
            [
                Descriptor(
                    {entry.key: entry.value for entry in descriptor.entries},
                    descriptor.hits_addend.value if descriptor.HasField("hits_addend") else shared,
                )
                for descriptor in message.descriptors
            ],
        )

    def encode(self, answer: RateLimitAnswer, *, descriptors: int) -> bytes:
        """Return the encoded decision for that many descriptors: Envoy needs a status for each."""
        code = _OK if answer.is_allowed else _OVER_LIMIT
        message = self._response(overall_code=code, raw_body=answer.body.encode())
        for _ in range(descriptors):
            message.statuses.add(code=code)
        for key, value in answer.response_headers.items():
            message.response_headers_to_add.add(key=key, value=value)
        for key, value in answer.request_headers.items():
            message.request_headers_to_add.add(key=key, value=value)
        data: bytes = message.SerializeToString()
        return data
