"""JSON documents of the protocol as types; unknown fields are ignored, as in Triton.

If an object has a duplicate key, the last one counts, as in Python, JavaScript and msgspec.
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
"""A string, closed or not: otherwise the search would restart at each quote of an open string."""
_NAN: Final = "1e0000998"
_INFINITY: Final = "1e0000999"
"""Replacements of `NaN` and `Infinity` during parsing: no double can hold them."""
_POSITION: Final = re.compile(r" \(byte \d+\)")

T = TypeVar("T")


class JsonDecoder(Generic[T]):
    """Decoder of documents as `kind`, including those with a byte order mark, NaN and Infinity.

    JSON has no such numbers, but Python and Triton write them. Valid JSON is decoded at msgspec's
    speed; other documents are rewritten and decoded again.
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
    """Return valid JSON for a document with the exceptions that `JsonDecoder` allows.

    None if it has no such exceptions. Literals without separating commas stay invalid.
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
    """Parameters of an input that have an effect."""

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
    """An infer request. `null` means absent: clients generated from schemas send it."""

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
    """Return the bytes before and after the data of the first input, an array of numbers.

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
    """Return decoders of requests with JSON data of one type in lists `rank` deep, and of data.

    They check every element at the parser's speed. The first one's messages have the fields of
    `InferMessage`, and `data` is always set; the second one decodes the data of a single input, and
    flat data to a tuple, as `struct` takes it.
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
    """Return the error for a document that could not be parsed."""
    if isinstance(error, RecursionError):
        reason = "JSON nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        reason = f"invalid UTF-8 in a string: {error.reason}"
    else:
        reason = str(error)[:_LONGEST_REASON]
    return InvalidArgumentError(f"failed to parse the request JSON buffer: {reason}")
