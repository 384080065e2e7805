"""BYTES tensors as raw bytes: each element is a 4-byte little-endian length and its bytes."""

import struct
from collections.abc import Iterable
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError

Body = bytes | bytearray | memoryview
"""A request's body, as a server read it."""

_LENGTH: Final = struct.Struct("<I")
_LENGTH_BYTES: Final = _LENGTH.size


def join_elements(elements: Iterable[object]) -> bytes:
    """The elements (bytes or str) with their lengths, one after the other."""
    parts = []
    for element in elements:
        value = element_bytes(element)
        parts.append(_LENGTH.pack(len(value)))
        parts.append(value)
    return b"".join(parts)


def element_bytes(element: object) -> bytes:
    """One element of a BYTES tensor; text becomes UTF-8."""
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    return str(element).encode()


def split_elements(raw: bytes | memoryview, count: int, name: str) -> list[bytes]:
    """The `count` elements that `raw` holds.

    Raises:
        InvalidArgumentError: A length points past the end, or there are more or fewer elements.
    """
    size = len(raw)
    # Checked first, so that a shape alone cannot make us allocate.
    if count * _LENGTH_BYTES > size:
        raise InvalidArgumentError(_wrong_count(name, count, size))
    elements: list[bytes] = []
    at = 0
    for _ in range(count):
        if at + _LENGTH_BYTES > size:
            raise InvalidArgumentError(_wrong_count(name, count, size))
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH_BYTES
        if at + length > size:
            msg = (
                f"incomplete string data for '{name}': element {len(elements)} should have "
                f"{length} bytes but {size - at} are left"
            )
            raise InvalidArgumentError(msg)
        elements.append(bytes(raw[at : at + length]))
        at += length
    if at != size:
        msg = (
            f"unexpected additional data for '{name}': {size - at} bytes after the last of "
            f"{count} elements"
        )
        raise InvalidArgumentError(msg)
    return elements


def object_array(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    """A BYTES tensor of `shape` from its elements in row-major order."""
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape)


def _wrong_count(name: str, count: int, size: int) -> str:
    return f"incomplete string data for '{name}': expected {count} elements in {size} bytes"
