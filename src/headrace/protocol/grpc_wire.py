"""gRPC over HTTP without a gRPC library: message frames, bounds of messages, status texts.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md

An empty message takes two bytes on the wire and eighty in memory: 64 MiB of them would take 3 GB.
Tensors need few fields, and the scan skips their data by its length.
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
"""Below this size, copying a message out of its frame is faster than a view of it."""
# Space to tilde, without the percent sign; the rest is percent-encoded UTF-8.
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_SHOWN: Final = 40
_LONGEST_MESSAGE: Final = 4000
"""Characters; a status text becomes a header, and proxies limit headers."""


def unframe(
    body: Body, encoding: bytes = b"", limit_bytes: int = 0
) -> bytes | bytearray | memoryview:
    """Return the one message of a unary call's body.

    Args:
        encoding: Compression of a compressed message: the header `grpc-encoding`.
        limit_bytes: Limit of a compressed message after decompression.

    Raises:
        InvalidArgumentError: The frame is truncated, other bytes follow it, or the message is not
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
    actual = len(body) - _PREFIX_BYTES
    if actual != length:
        description = (
            "is cut short" if actual < length else "is followed by more data; a unary call has one"
        )
        msg = f"gRPC frame of {length} bytes {description} ({actual} bytes received)"
        raise InvalidArgumentError(msg)
    if compressed:
        return decompress(body[_PREFIX_BYTES:], encoding.decode(), limit_bytes)
    return body[_PREFIX_BYTES:] if length <= _COPIED_BYTES else memoryview(body)[_PREFIX_BYTES:]


def frame(message: bytes) -> bytes:
    """Return the message in a frame, uncompressed."""
    return _PREFIX.pack(0, len(message)) + message


def frame_prefix(length: int) -> bytes:
    """Return the frame header of a message of `length` bytes, for writes in parts."""
    return _PREFIX.pack(0, length)


def grpc_message(text: str) -> str:
    """Return a status' text as the value of the header `grpc-message`."""
    shown = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."
    return quote(shown, safe=_PLAIN, errors="replace")


def parse_grpc_message(value: str) -> str:
    """Return the text in a header `grpc-message`; invalid percent-encoding stays unchanged."""
    return unquote(value, errors="replace")


def parse_grpc_timeout(value: str) -> float:
    """Return the seconds in a header `grpc-timeout`, such as `100m`.

    Raises:
        InvalidArgumentError: It is not one to eight digits and a unit.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        msg = f"grpc-timeout {value[:_SHOWN]!r} is not up to 8 digits and one of H, M, S, m, u, n"
        raise InvalidArgumentError(msg)
    return int(match[1]) * _UNIT_S[match[2]]


def delimited_prefix(field: int, size: int) -> bytes:
    """Return protobuf's tag and length before `size` bytes of a bytes or message field."""
    out = bytearray([field << 3 | 2])
    while size > 0x7F:  # noqa: PLR2004  # seven bits a byte
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def length_delimited(field: int, value: bytes) -> bytes:
    """Return a serialised bytes or message field."""
    return delimited_prefix(field, len(value)) + value


MAX_FIELDS: Final = 200_000
"""Fields of a request, of its inputs and of their contents, together.

Counting this many takes a tenth of a second, in which the replica answers no other request.
"""
MAX_SHAPE_BYTES: Final = 1024
SMALL_BYTES: Final = 1 << 20
"""Smaller messages are not scanned: they cannot become large."""
_VARINT, _DELIMITED = 0, 2
_FIXED: Final[Mapping[int, int]] = {1: 8, 5: 4}
"""Size in bytes of a fixed-size number, by wire type."""
_LONG: Final = 0x80
"""Bytes of a varint other than the last have at least this value; most varints have one byte."""
_INPUT: Final = 5
_SHAPE: Final = 3
_CONTENTS: Final = 5
_INNER: Final[Mapping[tuple[int, ...], frozenset[int]]] = {
    (): frozenset({_INPUT}),
    (_INPUT,): frozenset({_CONTENTS}),
}
"""Fields of a message, by its path, that are messages with many fields."""


def check_fields(message: bytes | bytearray | memoryview) -> None:
    """Raise InvalidArgumentError if a `ModelInferRequest` would become much larger when parsed.

    The parser reports an invalid message.
    """
    if len(message) > SMALL_BYTES:
        _Scan(memoryview(message)).run(0, len(message), ())


class _Scan:
    """Scan of a message without its data."""

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
                return  # a group, or not protobuf

    def _varint(self, offset: int, end: int) -> tuple[int, int]:
        """Return a number and its end; the scan stops at `end` or beyond 64 bits."""
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
"""A serialised `FileDescriptorSet` of `inference` and `grpc.health.v1`, which Envoy also reads."""
RLS_DESCRIPTOR_SET_PATH: Final = Path(str(files("headrace.protocol") / "rls.pb"))
"""The same for Envoy's rate limit service."""
REFLECTION_DESCRIPTOR_SET_PATH: Final = Path(str(files("headrace.protocol") / "reflection.pb"))
"""The same for gRPC server reflection."""
