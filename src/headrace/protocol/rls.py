"""What a gateway asks the rate limit service, and its answer, as bytes of Envoy's protocol."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError

from headrace.core import InvalidArgumentError
from headrace.protocol.descriptor_set import RLS_DESCRIPTOR_SET_PATH
from headrace.protocol.protos import load_pool, message_of

RLS_SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
RLS_METHOD: Final = "ShouldRateLimit"
_OK: Final = 1
_OVER_LIMIT: Final = 2


class Descriptor(msgspec.Struct, frozen=True):
    """What describes one request. `hits`: how much it counts; None where that was not said."""

    entries: Mapping[str, str]
    hits: int | None


class RateLimitQuestion(msgspec.Struct, frozen=True):
    """May these pass? `domain` names whose question it is."""

    domain: str
    descriptors: Sequence[Descriptor]


class RateLimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether they may; `body` is the text of a refusal.

    Headers are added to the answer that the caller gets, and to the request that goes on.
    """

    is_allowed: bool
    response_headers: Mapping[str, str] = {}
    request_headers: Mapping[str, str] = {}
    body: str = ""


class RateLimitCodec:
    """Between messages and bytes; made once, because it loads the descriptors."""

    def __init__(self) -> None:
        pool = load_pool(RLS_DESCRIPTOR_SET_PATH)
        package = RLS_SERVICE.rpartition(".")[0]
        self._request: Any = message_of(pool, f"{package}.RateLimitRequest")
        self._response: Any = message_of(pool, f"{package}.RateLimitResponse")

    def decode(self, data: bytes) -> RateLimitQuestion:
        """The question.

        Raises:
            InvalidArgumentError: The bytes are none.
        """
        try:
            message = self._request.FromString(data)
        except DecodeError as error:
            raise InvalidArgumentError(f"no rate limit request: {error}") from None
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
        """The answer to a question with so many descriptors: Envoy wants a status for each."""
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
