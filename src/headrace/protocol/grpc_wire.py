"""gRPC over HTTP without a gRPC library: message frames, bounds of messages, status texts.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md

An empty message takes two bytes on the wire and eighty in memory: 64 MiB of them would take 3 GB.
Tensors need few fields, and their data is skipped by its length.
"""

import re
import struct
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from headrace.core import InvalidArgumentError, UnsupportedError
from headrace.protocol.content import decompress
from headrace.protocol.values import Body

_ENCODINGS: Final = (b"gzip", b"deflate")
_PREFIX: Final = struct.Struct(">BI")
_PREFIX_BYTES: Final = _PREFIX.size
_COPIED_BYTES: Final = 4096
"""Below this, copying a message out of its frame costs less than a view of it."""
# Space to tilde, without the percent sign; the rest is percent-encoded UTF-8.
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_SHOWN: Final = 40
_LONGEST_MESSAGE: Final = 4000
"""Characters; a status text goes into a header, and proxies bound headers."""


def unframe(
    body: Body, encoding: bytes = b"", limit_bytes: int = 0
) -> bytes | bytearray | memoryview:
    """The one message of a unary call's body.

    Args:
        encoding: How a compressed message is compressed: the header `grpc-encoding`.
        limit_bytes: Of a compressed message, when it is decompressed.

    Raises:
        InvalidArgumentError: The frame is cut short, other bytes follow it, or the message is not
            compressed as `encoding` says.
        PayloadTooLargeError: The message has more bytes than `limit_bytes`.
        UnsupportedError: The message is compressed, and not by gzip or deflate.
    """
    if len(body) < _PREFIX_BYTES:
        msg = f"gRPC frame of {len(body)} bytes is cut short: its prefix alone has {_PREFIX_BYTES}"
        raise InvalidArgumentError(msg)
    compressed, length = _PREFIX.unpack_from(body)
    if compressed:
        if compressed > 1:
            msg = f"gRPC frame begins with {compressed}, which is not a valid compressed-flag"
            raise InvalidArgumentError(msg)
        if encoding not in _ENCODINGS:
            shown = encoding[:_SHOWN].decode("latin-1")
            msg = f"messages compressed with '{shown}' are not supported: send gzip or identity"
            raise UnsupportedError(msg)
    got = len(body) - _PREFIX_BYTES
    if got != length:
        what = "is cut short" if got < length else "is followed by more data; a unary call has one"
        msg = f"gRPC frame of {length} bytes {what} ({got} bytes received)"
        raise InvalidArgumentError(msg)
    if compressed:
        return decompress(body[_PREFIX_BYTES:], encoding.decode(), limit_bytes)
    return body[_PREFIX_BYTES:] if length <= _COPIED_BYTES else memoryview(body)[_PREFIX_BYTES:]


def frame(message: bytes) -> bytes:
    """The message in a frame, uncompressed."""
    return _PREFIX.pack(0, len(message)) + message


def frame_prefix(length: int) -> bytes:
    """What precedes a message of `length` bytes in its frame, for those who write in parts."""
    return _PREFIX.pack(0, length)


def grpc_message(text: str) -> str:
    """A status' text as the value of the header `grpc-message`."""
    shown = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."
    return quote(shown, safe=_PLAIN, errors="replace")


def parse_grpc_message(value: str) -> str:
    """The text of a header `grpc-message`; what is no percent-encoding stays as it is."""
    return unquote(value, errors="replace")


def parse_grpc_timeout(value: str) -> float:
    """Seconds of a header `grpc-timeout`, such as `100m`.

    Raises:
        InvalidArgumentError: It is not one to eight digits and a unit.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        msg = f"grpc-timeout {value[:_SHOWN]!r} is not up to 8 digits and one of H, M, S, m, u, n"
        raise InvalidArgumentError(msg)
    return int(match[1]) * _UNIT_S[match[2]]


def delimited_prefix(field: int, size: int) -> bytes:
    """Protobuf's tag and length before `size` bytes of a bytes or message field."""
    out = bytearray([field << 3 | 2])
    while size > 0x7F:  # noqa: PLR2004  # seven bits a byte
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def length_delimited(field: int, value: bytes) -> bytes:
    """A bytes or message field, serialised."""
    return delimited_prefix(field, len(value)) + value


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

    def run(self, offset: int, end: int, path: tuple[int, ...]) -> None:
        """Count the fields of the message in `data[at:end]`."""
        inner = _INNER.get(path, frozenset())
        data = self._data
        while offset < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                msg = (
                    f"the message has more than {MAX_FIELDS} fields: send tensors in "
                    "raw_input_contents"
                )
                raise InvalidArgumentError(msg)
            tag = data[offset]
            offset += 1
            if tag >= _LONG:
                tag, offset = self._varint(offset - 1, end)
            field, kind = tag >> 3, tag & 7
            if kind == _DELIMITED:
                if offset < end and data[offset] < _LONG:
                    size = data[offset]
                    offset += 1
                else:
                    size, offset = self._varint(offset, end)
                stop = min(offset + size, end)
                if field in inner:
                    self.run(offset, stop, (*path, field))
                elif path == (_INPUT,) and field == _SHAPE and size > MAX_SHAPE_BYTES:
                    raise InvalidArgumentError("the shape of an input has too many dimensions")
                offset = stop
            elif kind == _VARINT:
                _, offset = self._varint(offset, end)
            elif kind in _FIXED:
                offset += _FIXED[kind]
            else:
                return  # a group, or no protobuf at all

    def _varint(self, offset: int, end: int) -> tuple[int, int]:
        """A number and where it ends; cut off at `end`, or where it is too long to be one."""
        data = self._data
        value = shift = 0
        while offset < end:
            byte = data[offset]
            offset += 1
            value |= (byte & 0x7F) << shift
            if byte < _LONG or shift > 63:  # noqa: PLR2004  # the last byte; 64 bits
                break
            shift += 7
        return value, offset


DESCRIPTOR_SET_PATH: Final = Path(str(files("headrace.protocol") / "oip.pb"))
"""A serialised `FileDescriptorSet` of `inference` and `grpc.health.v1`; Envoy reads it too."""
RLS_DESCRIPTOR_SET_PATH: Final = Path(str(files("headrace.protocol") / "rls.pb"))
"""The same of Envoy's rate limit service."""
