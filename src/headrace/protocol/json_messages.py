"""The protocol's JSON documents as types; unknown fields are ignored, as Triton does.

Where an object names a key twice, the last one counts, as in Python, JavaScript and msgspec.
"""

import math
import re
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from headrace.core import InvalidArgumentError

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a document that is not JSON, or not the expected one."""
_LONGEST_REASON: Final = 300
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STRING: Final = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z))', re.DOTALL)
"""A string, closed or not: the search would begin again at each quote of one that is not."""
_NAN: Final = "1e0000998"
_INFINITY: Final = "1e0000999"
"""These stand for `NaN` and `Infinity` while a document is parsed: no double can hold them."""
_POSITION: Final = re.compile(r" \(byte \d+\)")

T = TypeVar("T")


class JsonDecoder(Generic[T]):
    """Decodes documents as `kind`, also those with a byte order mark, NaN and Infinity.

    JSON has no such numbers, but Python and Triton write them. What is JSON is decoded at msgspec's
    speed; the rest is rewritten and decoded again.
    """

    def __init__(self, kind: Any) -> None:  # noqa: ANN401  # a type, or a form such as `X | None`
        self._strict: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._loose: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind, float_hook=_number)

    def decode(self, document: bytes | bytearray | memoryview) -> T:
        """Return the document; raise one of `UNREADABLE` if it is invalid.

        NaN and infinities are decoded only where `kind` has `Any`.
        """
        try:
            return self._strict.decode(document)
        except UNREADABLE:
            standard = _standard(bytes(document))
            if standard is None:
                raise
        try:
            return self._loose.decode(standard)
        except msgspec.DecodeError as error:
            raise type(error)(_POSITION.sub("", str(error))) from None


def _standard(document: bytes) -> bytes | None:
    """Return what is left to parse of a document that is JSON but for what `JsonDecoder` allows.

    None if it has nothing of that. What follows or precedes a literal without a comma stays wrong.
    """
    text = document.removeprefix(_BYTE_ORDER_MARK)
    has_literals = b"NaN" in text or b"Infinity" in text
    if has_literals and _NAN.encode() not in text and _INFINITY.encode() not in text:
        parts = _STRING.split(text)
        parts[::2] = [
            part.replace(b"NaN", _NAN.encode()).replace(b"Infinity", _INFINITY.encode())
            for part in parts[::2]
        ]
        text = b"".join(parts)
    return text if len(text) != len(document) else None


def _number(text: str) -> float:
    if text == _NAN:
        return math.nan
    value = float(text)
    if math.isinf(value) and text.removeprefix("-") != _INFINITY:
        raise ValueError("Number out of range")
    return value


class InputParameters(msgspec.Struct, gc=False):
    """An input's parameters, those that are acted on."""

    binary_data_size: int | None = None
    shared_memory_region: Any = None


class InputMessage(msgspec.Struct, gc=False):
    """An input with data of any kind: JSON, or binary after the header."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: InputParameters | None = None
    data: list[Any] | None = None


class OutputMessage(msgspec.Struct, gc=False):
    """A requested output."""

    name: str
    parameters: dict[str, Any] | None = None


class InferMessage(msgspec.Struct, gc=False):
    """An infer request. `null` is as good as absent: clients made from schemas send it."""

    inputs: list[InputMessage]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[OutputMessage] | None = None


class _RawInput(msgspec.Struct, gc=False):
    data: msgspec.Raw


class _RawMessage(msgspec.Struct, gc=False):
    inputs: list[_RawInput]


_RAW: Final = msgspec.json.Decoder(_RawMessage)
_EMPTY: Final = b"[]"


def around_data(body: bytes) -> tuple[bytes, bytes] | None:
    """What stands before and after the data of a request's first input, an array of numbers.

    None if they cannot be determined.
    """
    data = bytes(_RAW.decode(body).inputs[0].data)
    start = body.rfind(data)
    before, after = body[:start], body[start + len(data) :]
    emptied = bytes(_RAW.decode(before + _EMPTY + after).inputs[0].data)
    return (before, after) if data != _EMPTY == emptied else None


def typed_decoders(
    element: type, rank: int
) -> tuple[msgspec.json.Decoder[InferMessage], msgspec.json.Decoder[Any]]:
    """Decode requests whose inputs all hold JSON data of one type, in lists `rank` deep; and data.

    They check every element at the parser's speed. The first one's messages have the fields of
    `InferMessage`, and `data` is always there; the second one takes the data of an input alone, and
    makes a tuple of flat data, as `struct` takes it.
    """
    data: Any = element
    for _ in range(rank):
        data = list[data]
    input_type: Any = msgspec.defstruct(
        "TypedInput",
        [
            ("name", str),
            ("shape", tuple[int, ...]),
            ("datatype", str),
            ("data", data),
            ("parameters", InputParameters | None, None),
        ],
        gc=False,
    )
    whole = msgspec.defstruct(
        "TypedInfer",
        [
            ("inputs", list[input_type]),
            ("id", str | None, None),
            ("parameters", dict[str, Any] | None, None),
            ("outputs", list[OutputMessage] | None, None),
        ],
        gc=False,
    )
    return (
        cast("msgspec.json.Decoder[InferMessage]", msgspec.json.Decoder(whole)),
        msgspec.json.Decoder(tuple[element, ...] if rank == 1 else data),  # type: ignore[valid-type]  # made here
    )


def unreadable(error: BaseException) -> InvalidArgumentError:
    """The answer to a document that could not be parsed."""
    if isinstance(error, RecursionError):
        reason = "JSON nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        reason = f"invalid UTF-8 in a string: {error.reason}"
    else:
        reason = str(error)[:_LONGEST_REASON]
    return InvalidArgumentError(f"failed to parse the request JSON buffer: {reason}")
