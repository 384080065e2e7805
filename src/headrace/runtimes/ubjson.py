"""Universal Binary JSON, as far as XGBoost writes it: https://ubjson.org.

Lists of one type of number come as NumPy arrays, so that a million nodes are read in no time.
"""

from typing import Any, Final

import numpy as np

from headrace.core import Array
from headrace.runtimes.file_bytes import BrokenFileError

_MAX_DEPTH: Final = 64
_NUMBERS: Final[dict[bytes, np.dtype[Any]]] = {
    b"i": np.dtype(">i1"),
    b"U": np.dtype(">u1"),
    b"I": np.dtype(">i2"),
    b"l": np.dtype(">i4"),
    b"L": np.dtype(">i8"),
    b"d": np.dtype(">f4"),
    b"D": np.dtype(">f8"),
}
_CONSTANTS: Final = {b"Z": None, b"T": True, b"F": False}


def decode_ubjson(data: bytes) -> object:
    """The value that `data` begins with.

    Raises:
        BrokenFileError: It is truncated, or not UBJSON.
        UnicodeDecodeError: A text in it is none.
    """
    return _Reader(data).value(0)


class _Reader:
    """A position in the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self, depth: int) -> object:
        """The next value, with its marker."""
        if depth > _MAX_DEPTH:
            msg = f"nests more than {_MAX_DEPTH} values"
            raise BrokenFileError(msg)
        mark = self._take(1)
        if mark == b"{":
            return self._object(depth)
        if mark == b"[":
            return self._list(depth)
        if mark == b"S":
            return self._text()
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        return self._number(mark)

    def _object(self, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        while self._peek() != b"}":
            key = self._text()
            if key in found:
                msg = "a name stands there twice"
                raise BrokenFileError(msg)
            found[key] = self.value(depth + 1)
        self._at += 1
        return found

    def _list(self, depth: int) -> object:
        mark = self._peek()
        if mark == b"$":
            return self._typed()
        if mark == b"#":
            self._at += 1
            return [self.value(depth + 1) for _ in range(self._length())]
        found: list[object] = []
        while self._peek() != b"]":
            found.append(self.value(depth + 1))
        self._at += 1
        return found

    def _typed(self) -> Array:
        self._at += 1
        mark = self._take(1)
        if mark not in _NUMBERS or self._take(1) != b"#":
            msg = f"a list of the type {mark!r}"
            raise BrokenFileError(msg)
        dtype = _NUMBERS[mark]
        return np.frombuffer(self._take(self._length() * dtype.itemsize), dtype)

    def _text(self) -> str:
        return self._take(self._length()).decode()

    def _length(self) -> int:
        length = self._number(self._take(1))
        if not isinstance(length, int) or not 0 <= length <= len(self._data):
            msg = f"a length of {length}"
            raise BrokenFileError(msg)
        return length

    def _number(self, mark: bytes) -> int | float:
        dtype = _NUMBERS.get(mark)
        if dtype is None:
            msg = f"{mark!r} at byte {self._at - 1} begins no value"
            raise BrokenFileError(msg)
        number: int | float = np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()
        return number

    def _peek(self) -> bytes:
        mark = self._data[self._at : self._at + 1]
        if not mark:
            msg = "it ends too early"
            raise BrokenFileError(msg)
        return mark

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            msg = "it ends too early"
            raise BrokenFileError(msg)
        part = self._data[self._at : end]
        self._at = end
        return part
