"""Which model does a gRPC message name? Read from its bytes, without parsing its tensors.

https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from typing import Final

from headrace.core import InvalidArgumentError

Message = bytes | bytearray | memoryview

_NAME: Final = 1
_VERSION: Final = 2
_VARINT: Final = 0
_FIXED: Final = {1: 8, 5: 4}
_DELIMITED: Final = 2
_MAX_SHIFT: Final = 63
_MOST_FIELDS: Final = 100_000


def named_model(message: Message) -> tuple[str, str]:
    """Fields 1 and 2: name and version, in every request of V2 that is about a model.

    Raises:
        InvalidArgumentError: The bytes are no message, or one of too many fields.
    """
    found = {_NAME: b"", _VERSION: b""}
    try:
        for count, (field, value) in enumerate(_fields(message)):
            if count == _MOST_FIELDS:
                raise InvalidArgumentError(f"the message has more than {_MOST_FIELDS} fields")
            if field in found:
                found[field] = bytes(value)
        return found[_NAME].decode(), found[_VERSION].decode()
    except (IndexError, ValueError):
        raise InvalidArgumentError("failed to parse the request: it is no message") from None


def _fields(message: Message) -> Iterator[tuple[int, Message]]:
    """Number and value of each field; the value is empty unless it is a string or a message.

    Raises:
        IndexError: The message is cut short.
        ValueError: It is none.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        start = at
        if kind == _DELIMITED:
            size, start = _varint(message, at)
            at = start + size
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            msg = f"wire type {kind}"
            raise ValueError(msg)
        if at > end:
            raise IndexError
        yield tag >> 3, message[start:at] if kind == _DELIMITED else b""


def _varint(message: Message, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, _MAX_SHIFT + 1, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004  # the last one
            return value, at
    msg = "a number of more than 64 bits"
    raise ValueError(msg)
