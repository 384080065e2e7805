"""Compressed bodies: `Content-Encoding` gzip and deflate, never larger than the limit."""

import zlib
from collections.abc import Iterable
from typing import Final

from headrace.core import InvalidArgumentError, PayloadTooLargeError, UnsupportedError
from headrace.protocol.json_encode import Buffer
from headrace.protocol.values import Body

_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_LEVEL: Final = 1
"""Tensors compress little, and a slow response is worse than a longer one."""
_DEFLATE_METHOD: Final = 8
_SHOWN: Final = 40


def decompress(body: Body, encoding: str, limit_bytes: int) -> Body:
    """Return the body with its `Content-Encoding` removed; `identity` and empty change nothing.

    Args:
        body: One compressed stream.
        encoding: The header's value, case-insensitive.
        limit_bytes: Decompression stops here, regardless of the stream's announced size.

    Raises:
        PayloadTooLargeError: The body is longer than `limit_bytes`.
        InvalidArgumentError: The stream is damaged, truncated, or followed by more data.
        UnsupportedError: Another encoding, or several.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        if len(body) > limit_bytes:
            raise PayloadTooLargeError(limit_bytes=limit_bytes, got_bytes=len(body))
        return body
    stream = zlib.decompressobj(wbits=_window(name, body))
    try:
        # One byte above the limit proves the excess; 0 would mean "without limit".
        plain = stream.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        msg = f"the body is not valid {name} data: {error}"
        raise InvalidArgumentError(msg) from None
    if len(plain) > limit_bytes:
        raise PayloadTooLargeError(limit_bytes=limit_bytes)
    if not stream.eof:
        msg = f"the {name} data of the body is cut short"
        raise InvalidArgumentError(msg)
    if stream.unused_data:
        msg = f"the body goes on after the end of its {name} data"
        raise InvalidArgumentError(msg)
    return plain


def compress(body: Buffer | Iterable[Buffer], encoding: str) -> bytes:
    """Return the body in this `Content-Encoding` (gzip or deflate).

    Raises:
        UnsupportedError: Another encoding.
    """
    name = encoding.strip().lower()
    if name not in ("gzip", "deflate"):
        raise _unsupported(encoding)
    stream = zlib.compressobj(_LEVEL, wbits=_GZIP if name == "gzip" else _ZLIB)
    parts = [body] if isinstance(body, bytes | memoryview) else body
    pieces = [stream.compress(part) for part in parts]
    return b"".join([*pieces, stream.flush()])


def _window(name: str, body: Body) -> int:
    """Return zlib's `wbits`; "deflate" is a zlib stream, but some clients send raw deflate."""
    if name in ("gzip", "x-gzip"):
        return _GZIP
    if name != "deflate":
        raise _unsupported(name)
    has_header = (
        len(body) > 1
        and body[0] & 0xF == _DEFLATE_METHOD
        and int.from_bytes(body[:2], "big") % 31 == 0
    )
    return _ZLIB if has_header else _RAW


def _unsupported(encoding: str) -> UnsupportedError:
    return UnsupportedError(
        f"content encoding '{encoding[:_SHOWN]}' is not supported: use gzip, deflate or identity"
    )
