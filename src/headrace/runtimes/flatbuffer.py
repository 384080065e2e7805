"""Tables of a FlatBuffer, read without trust: https://flatbuffers.dev/internals.

Whatever points out of the data is a ValueError.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

import numpy as np

from headrace.core import Array


@dataclass(frozen=True, slots=True)
class Table:
    """A table; fields are known by their number in the schema, absent ones give the default."""

    data: bytes | mmap
    at: int

    @classmethod
    def root(cls, data: bytes | mmap) -> "Table":
        """The table that the data is of."""
        return cls(data, _unpack("<I", data, 0))

    def number(self, field: int, layout: str, default: float) -> float:
        """A number, by its layout in `struct`."""
        place = self._place(field)
        return default if place is None else _unpack(layout, self.data, place)

    def table(self, field: int) -> "Table | None":
        """A table within this one."""
        place = self._target(field)
        return None if place is None else Table(self.data, place)

    def text(self, field: int) -> str:
        """A string; empty if it is absent."""
        return self._bytes(field, 1).decode()

    def array(self, field: int, dtype: str) -> Array:
        """A list of numbers; empty if it is absent."""
        return np.frombuffer(self._bytes(field, np.dtype(dtype).itemsize), dtype)

    def tables(self, field: int) -> Iterator["Table"]:
        """The tables of a list."""
        place = self._target(field)
        if place is None:
            return
        for i in range(_unpack("<I", self.data, place)):
            slot = place + 4 + 4 * i
            yield Table(self.data, slot + _unpack("<I", self.data, slot))

    def length(self, field: int) -> int:
        """How many items a list has."""
        place = self._target(field)
        return 0 if place is None else _unpack("<I", self.data, place)

    def _bytes(self, field: int, item_bytes: int) -> bytes:
        place = self._target(field)
        if place is None:
            return b""
        end = place + 4 + item_bytes * _unpack("<I", self.data, place)
        if end > len(self.data):
            msg = "a list ends beyond the data"
            raise ValueError(msg)
        return self.data[place + 4 : end]

    def _place(self, field: int) -> int | None:
        fields = self.at - _unpack("<i", self.data, self.at)
        slot = 4 + 2 * field
        if slot + 2 > _unpack("<H", self.data, fields):
            return None
        offset = _unpack("<H", self.data, fields + slot)
        return self.at + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + _unpack("<I", self.data, place)


def _unpack(layout: str, data: bytes | mmap, at: int) -> int:
    if at < 0:
        msg = "an offset leads out of the data"
        raise ValueError(msg)
    try:
        number: int = struct.unpack_from(layout, data, at)[0]
    except struct.error as error:
        msg = "an offset leads out of the data"
        raise ValueError(msg) from error
    return number
