"""gRPC over HTTP without a gRPC library: message frames, status texts, timeouts.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import re
import struct
from typing import Final
from urllib.parse import quote, unquote

from headrace.core import InvalidArgumentError, UnsupportedError
from headrace.protocol.byte_tensors import Body
from headrace.protocol.content import decompress

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
            msg = f"gRPC frame begins with {compressed}, which is no compressed-flag"
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
