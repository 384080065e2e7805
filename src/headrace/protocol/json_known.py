"""Cache of JSON documents by their constant bytes: only new numbers are parsed.

A caller sends the same document again and again, with other numbers in the same place. What stands
before and after these is compared, not parsed, and of the document only one array is decoded.
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
    """A request with one input, but for the numbers in it.

    Args:
        before: Up to the array of numbers.
        after: From its end.
        data: Decodes the array, which is nested if `is_nested`, and refuses another type.
        tensor: The input; `plan` is what follows from its shape.
        request: All else that the document says.
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
        assert plan.pack is not None  # only numbers are learnt
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
        """The request, if `body` is this document; None too if its numbers are not as they should.

        Such numbers are for the general way, which says what is wrong with them.
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
    """The documents that callers of one model send most, the likeliest first."""

    def __init__(self) -> None:
        self._known: list[KnownDocument] = []
        self._misses = 0

    def read(self, body: bytes) -> InferRequest | None:
        """The request, if it is a known document."""
        for index, document in enumerate(self._known):
            request = document.read(body)
            if request is not None:
                if index:
                    self._known[index], self._known[index - 1] = self._known[index - 1], document
                return request
        return None

    def is_worth_learning(self) -> bool:
        """Whether to learn a document that was not known.

        Some callers' documents are never alike: looking at each would cost them time for nothing.
        """
        self._misses = misses = self._misses + 1
        return not misses & (misses - 1) or not misses % _LEARNT_EVERY

    def learn(self, document: KnownDocument) -> None:
        """Know it again, instead of the one that is least likely to come."""
        del self._known[_REMEMBERED - 1 :]
        self._known.append(document)
