"""Limits on the number of a JSON document's parts, counted before the expensive parsing.

A Python object takes up to forty times the bytes of its JSON: 64 MiB of `[],` would take 1.5 GB and
block the replica for ten seconds. Tensors need few objects; numbers in regular arrays need none.
"""

from typing import Final

import numpy as np

from headrace.core import InvalidArgumentError
from headrace.protocol.values import Body

MAX_PARTS: Final = 2_000_000
"""Arrays, objects, members and strings of one document, together: 32 images of 224 x 224 pixels,
nested to the last channel, have 1.6 million.
"""
MAX_VALUES: Final = 8_000_000
"""Elements of all arrays, if each becomes an object."""
_BLOCK_BYTES: Final = 1 << 20
_PARTS: Final = np.frombuffer(b"[{:", np.uint8)
_QUOTE: Final = ord('"')
_COMMA: Final = ord(",")


def check_parts(body: Body) -> None:
    """Raise InvalidArgumentError if the document has too many parts; small ones are not scanned.

    Characters in strings count too: distinguishing them would cost as much as parsing.
    """
    if len(body) <= MAX_PARTS:
        return
    parts = quotes = 0
    for block in _blocks(body):
        parts += sum(int(np.count_nonzero(block == byte)) for byte in _PARTS)
        quotes += int(np.count_nonzero(block == _QUOTE))
        if parts + quotes // 2 > MAX_PARTS:
            raise _too_many("arrays, objects and strings", MAX_PARTS)


def check_values(body: Body) -> None:
    """Raise InvalidArgumentError if the document has too many values for Python objects."""
    if len(body) <= MAX_VALUES:
        return
    values = 0
    for block in _blocks(body):
        values += int(np.count_nonzero(block == _COMMA))
        if values > MAX_VALUES:
            raise _too_many("values", MAX_VALUES)


def _blocks(body: Body) -> "list[np.ndarray[tuple[int], np.dtype[np.uint8]]]":
    whole = np.frombuffer(body, np.uint8)
    return [whole[start : start + _BLOCK_BYTES] for start in range(0, len(whole), _BLOCK_BYTES)]


def _too_many(description: str, limit: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the JSON document has more than {limit} {description}: send tensors flat, or as "
        "binary data"
    )
