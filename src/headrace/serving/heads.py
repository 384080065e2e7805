"""A request head that was parsed before, told by its bytes.

A caller sends the same head again and again: only the digits of Content-Length differ, and behind
the gateway the request's id. What is equal byte for byte means what the parser said it means, so it
is not parsed again: a tenth fewer instructions for a small request with four headers, and more is
saved behind the gateway, which sends nine. Whatever else is left to the parser: another order,
other spaces, bodies in chunks, a body that did not come whole with its head.
"""

import re
from typing import Final

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,5})[ \t]*(?=\r\n)", re.IGNORECASE)
_ID: Final = re.compile(rb"\r\nx-request-id:[ \t]*([0-9a-f-]{36})[ \t]*(?=\r\n)", re.IGNORECASE)
_ID_BYTES: Final = 36
_ID_LETTERS: Final = b"0123456789abcdef-"
_MOST_DIGITS: Final = 5
_REMEMBERED_SIZES: Final = 32
_NOT_PLAIN: Final = (b"transfer-encoding", b"expect", b"upgrade", b"trailer")
"""Headers that make more of a request than a head and a body of a known length."""


class KnownHead:
    """A head, but for what differs between two requests.

    Args:
        method: As the parser read it; likewise `target` and `headers`.
        before: Up to the digits of Content-Length.
        between: From there to the request's id, or to the end of the head if there is none.
        after: From the id to the end; empty if there is none.
    """

    __slots__ = ("_after", "_before", "_between", "_headers", "_starts", "method", "target")

    def __init__(  # noqa: PLR0917  # positional, in the order of the bytes
        self,
        method: bytes,
        target: bytes,
        headers: dict[bytes, bytes],
        before: bytes,
        between: bytes,
        after: bytes,
    ) -> None:
        self.method = method
        self.target = target
        self._headers = headers.copy()
        self._before = before
        self._between = between
        self._after = after
        self._starts: dict[int, tuple[bytes, bytes]] = {}

    def find(self, raw: bytes) -> tuple[dict[bytes, bytes], bytes] | None:
        """The headers and the body of `raw`, if that is this head and its whole body, no more.

        The headers are the caller's to keep.
        """
        found = self._starts.get(len(raw)) or self._start_for(len(raw))
        if found is None:
            return None
        start, digits = found
        if not raw.startswith(start):
            return None
        headers = self._headers.copy()
        headers[b"content-length"] = digits
        at = len(start)
        if self._after:
            stop = at + _ID_BYTES
            request_id = raw[at:stop]
            if request_id.translate(None, _ID_LETTERS) or not raw.startswith(self._after, stop):
                return None
            headers[b"x-request-id"] = request_id
            at = stop + len(self._after)
        return headers, raw[at:]

    def _start_for(self, size: int) -> tuple[bytes, bytes] | None:
        """How a request of `size` bytes begins, up to its id, and its Content-Length.

        The length is what is left beside the head, which has the length's digits: one fits, or
        none, and then no such request has this size.
        """
        others = len(self._before) + len(self._between) + len(self._after)
        left = size - others - (_ID_BYTES if self._after else 0)
        for count in range(1, _MOST_DIGITS + 1):
            digits = b"%d" % max(left - count, 0)
            if len(digits) == count <= left:
                break
        else:
            return None
        if len(self._starts) >= _REMEMBERED_SIZES:
            self._starts.clear()
        found = self._starts[size] = (self._before + digits + self._between, digits)
        return found


def learn(
    raw: bytes, method: bytes, target: bytes, headers: dict[bytes, bytes], body_bytes: int
) -> KnownHead | None:
    """The head of `raw`, to be known again; None if it is none that can be told by its bytes.

    Args:
        raw: Nothing but one request, whole.
        method: As the parser read it; likewise `target` and `headers`.
        body_bytes: How long its body is.
    """
    size = len(raw) - body_bytes
    head = raw[:size]
    if (
        any(name in headers for name in _NOT_PLAIN)
        or raw.find(_END) + len(_END) != size  # the first is where the parser ends it
        or not head.startswith(method + b" ")
    ):
        return None
    lengths = list(_LENGTH.finditer(head))
    if len(lengths) != 1 or int(lengths[0][1]) != body_bytes:
        return None
    start, end = lengths[0].span(1)
    ids = list(_ID.finditer(head, end))
    if len(ids) != 1 or ids[0][1] != headers.get(b"x-request-id"):
        return KnownHead(method, target, headers, head[:start], head[end:], b"")
    at, stop = ids[0].span(1)
    return KnownHead(method, target, headers, head[:start], head[end:at], head[stop:])
