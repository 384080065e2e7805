"""How many fields may a protobuf message have? Counted before it is parsed.

An empty message takes two bytes on the wire and eighty in memory: 64 MiB of them would take 3 GB.
Tensors need few fields, and their data is skipped by its length.
"""

from collections.abc import Mapping
from typing import Final

from headrace.core import InvalidArgumentError

MAX_FIELDS: Final = 200_000
"""Fields of a request, of its inputs and of their contents, together.

Counting so many takes a tenth of a second, in which the replica answers nobody else.
"""
MAX_SHAPE_BYTES: Final = 1024
SMALL_BYTES: Final = 1 << 20
"""A smaller message is not looked at: it cannot become large."""

_VARINT, _DELIMITED = 0, 2
_FIXED: Final[Mapping[int, int]] = {1: 8, 5: 4}
"""Bytes of a number of fixed size, by its kind."""
_LONG: Final = 0x80
"""A byte of a number that is not its last is as large or larger; most numbers have one byte."""
_INPUT: Final = 5
_SHAPE: Final = 3
_CONTENTS: Final = 5
_INNER: Final[Mapping[tuple[int, ...], frozenset[int]]] = {
    (): frozenset({_INPUT}),
    (_INPUT,): frozenset({_CONTENTS}),
}
"""By the path to a message: which of its fields are messages with many fields of their own."""


def check_fields(message: bytes | bytearray | memoryview) -> None:
    """Raise InvalidArgumentError if a `ModelInferRequest` would become far more than it is.

    What is no valid message is left to the parser, which says so.
    """
    if len(message) > SMALL_BYTES:
        _Scan(memoryview(message)).run(0, len(message), ())


class _Scan:
    """One walk over a message, without its data."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._fields = 0

    def run(self, at: int, end: int, path: tuple[int, ...]) -> None:
        """Count the fields of the message in `data[at:end]`."""
        inner = _INNER.get(path, frozenset())
        data = self._data
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                msg = (
                    f"the message has more than {MAX_FIELDS} fields: send tensors in "
                    "raw_input_contents"
                )
                raise InvalidArgumentError(msg)
            tag = data[at]
            at += 1
            if tag >= _LONG:
                tag, at = self._varint(at - 1, end)
            field, kind = tag >> 3, tag & 7
            if kind == _DELIMITED:
                if at < end and data[at] < _LONG:
                    size = data[at]
                    at += 1
                else:
                    size, at = self._varint(at, end)
                stop = min(at + size, end)
                if field in inner:
                    self.run(at, stop, (*path, field))
                elif path == (_INPUT,) and field == _SHAPE and size > MAX_SHAPE_BYTES:
                    raise InvalidArgumentError("the shape of an input has too many dimensions")
                at = stop
            elif kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                return  # a group, or no protobuf at all

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number and where it ends; cut off at `end`, or where it is too long to be one."""
        data = self._data
        value = shift = 0
        while at < end:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < _LONG or shift > 63:  # noqa: PLR2004  # the last byte; 64 bits
                break
            shift += 7
        return value, at
