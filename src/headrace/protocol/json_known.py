"""Cache of JSON documents by their constant bytes: only new numbers are parsed.

A caller repeats a document with other numbers in the same position. The bytes before and after them
are compared, not parsed, and only one array of the document is decoded.
"""

import struct
from typing import Any, Final

import msgspec

from headrace.core import InferRequest, InvalidArgumentError, Packed
from headrace.protocol.inputs import InputTensor, ShapePlan
from headrace.protocol.json_messages import UNREADABLE
from headrace.protocol.values import flatten

_REMEMBERED: Final = 4
_LEARNT_EVERY: Final = 256


class KnownDocument:
    """Cached request with one input, without its numbers.

    Args:
        before: Bytes up to the array of numbers.
        after: Bytes from its end.
        data: Decoder of the array, nested if `is_nested`; refuses other element types.
        tensor: The input; `plan` has the properties of its shape.
        request: The rest of the document.
    """

    __slots__ = (
        "_after",
        "_before",
        "_decode",
        "_dtype",
        "_elements",
        "_is_nested",
        "_name",
        "_pack",
        "_request",
        "_shape",
    )

    def __init__(
        self,
        before: bytes,
        after: bytes,
        *,
        data: msgspec.json.Decoder[Any],
        is_nested: bool,
        tensor: InputTensor,
        plan: ShapePlan,
        request: InferRequest,
    ) -> None:
        assert plan.pack is not None  # only numeric inputs are cached
        self._before = before
        self._after = after
        self._decode = data.decode
        self._is_nested = is_nested
        self._name = tensor.name
        self._dtype = tensor.dtype
        self._shape = plan.shape
        self._elements = plan.elements
        self._pack = plan.pack
        self._request = request

    def read(self, body: bytes) -> InferRequest | None:
        """Return the request if `body` is this document with valid numbers; otherwise None.

        The general decoder reports invalid numbers.
        """
        if not body.startswith(self._before) or not body.endswith(self._after):
            return None
        try:
            data = self._decode(body[len(self._before) : len(body) - len(self._after)])
            if self._is_nested:
                data = flatten(self._name, data, self._shape)
            if len(data) != self._elements:
                return None
            packed = Packed(self._name, self._shape, self._dtype, self._pack(*data))
        except (*UNREADABLE, InvalidArgumentError, struct.error, OverflowError):
            return None
        return self._request.with_inputs(packed)


class KnownDocuments:
    """Most frequent documents of one model's callers, the likeliest first."""

    def __init__(self) -> None:
        self._known: list[KnownDocument] = []
        self._misses = 0

    def read(self, body: bytes) -> InferRequest | None:
        """Return the request if its document is cached."""
        for index, document in enumerate(self._known):
            request = document.read(body)
            if request is not None:
                if index:
                    self._known[index], self._known[index - 1] = self._known[index - 1], document
                return request
        return None

    def is_worth_learning(self) -> bool:
        """Whether to cache a document that was not cached.

        Some callers never repeat a document: inspecting each would cost time without a gain.
        """
        self._misses = misses = self._misses + 1
        return not misses & (misses - 1) or not misses % _LEARNT_EVERY

    def learn(self, document: KnownDocument) -> None:
        """Cache a document in place of the least likely one."""
        del self._known[_REMEMBERED - 1 :]
        self._known.append(document)
