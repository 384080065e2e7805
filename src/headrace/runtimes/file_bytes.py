"""Bounded readers of untrusted bytes: files, protobuf messages and FlatBuffers.

No content is executed. Offsets of a FlatBuffer (https://flatbuffers.dev/internals) are not trusted:
an offset beyond the data is a ValueError.
"""

import os
import stat
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from headrace.core import Array

_BLOCK: Final = 1 << 16
_MAX_FIELDS: Final = 2_000_000
_MAX_VARINT_BYTES: Final = 10
_BYTES: Final = 2


class BrokenFileError(Exception):
    """Raised if bytes contradict the format that their beginning declares; the message says how."""


def visible_files(directory: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the visible files of a directory with one of these suffixes, sorted."""
    return sorted(
        file
        for file in directory.iterdir()
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )


class FileReader:
    """A regular file with random access in blocks; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # opening a named pipe would block
        self._descriptor = os.open(path, flags)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise BrokenFileError("is not a regular file")
        self.size = status.st_size
        self._block, self._start = b"", 0
        self.fields_left = _MAX_FIELDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def head(self, size: int) -> bytes:
        """Return the first bytes, or fewer if the file is shorter."""
        return self.read(0, min(size, self.size))

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            BrokenFileError: The file is too short.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BrokenFileError("is truncated or damaged: it ends before its content does")
        if size > _BLOCK:
            return self._from_disk(offset, size)
        if not (self._start <= offset and offset + size <= self._start + len(self._block)):
            self._block = self._from_disk(offset, min(_BLOCK, self.size - offset))
            self._start = offset
        begin = offset - self._start
        return self._block[begin : begin + size]

    def byte(self, offset: int) -> int:
        """Return the byte at an offset."""
        index = offset - self._start
        if 0 <= index < len(self._block):
            return self._block[index]
        return self.read(offset, 1)[0]

    def _from_disk(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            raise BrokenFileError("became shorter while it was read")
        return data

    def number(self, offset: int, form: str) -> int:
        """Return the little-endian integer at an offset; `form` is a `struct` format."""
        (value,) = struct.unpack(f"<{form}", self.read(offset, struct.calcsize(f"<{form}")))
        return int(value)


@dataclass(frozen=True, slots=True)
class ProtobufField:
    """One field of a protobuf message: a number, or a range of bytes."""

    number: int
    kind: int
    value: int
    start: int
    end: int

    @property
    def is_bytes(self) -> bool:
        """Whether the value is a string, bytes or a message."""
        return self.kind == _BYTES


def fields(source: FileReader, start: int = 0, end: int | None = None) -> Iterator[ProtobufField]:
    """Yield the fields of the message at a range without reading their content.

    Raises:
        BrokenFileError: It is not a message, or has more fields than a model has.
    """
    end = source.size if end is None else end
    while start < end:
        source.fields_left -= 1
        if source.fields_left < 0:
            raise BrokenFileError(f"has more than {_MAX_FIELDS} fields")
        key, start = varint(source, start, end)
        number, kind = key >> 3, key & 7
        value, begin = 0, start
        match kind:
            case 0:
                value, start = varint(source, start, end)
            case 1:
                start += 8
            case 2:
                length, begin = varint(source, start, end)
                start = begin + length
            case 5:
                start += 4
            case _:
                raise BrokenFileError("is truncated or damaged: it is not a protobuf message")
        if start > end or not number:
            raise BrokenFileError("is truncated or damaged: it ends before its content does")
        yield ProtobufField(number, kind, value, begin, start)


def inside(source: FileReader, field: ProtobufField) -> Iterator[ProtobufField]:
    """Yield the fields of the message in a field."""
    if not field.is_bytes:
        raise BrokenFileError("is damaged: a number where a message should be")
    return fields(source, field.start, field.end)


def within(source: FileReader, field: ProtobufField, *path: int) -> Iterator[ProtobufField]:
    """Yield the fields at a path of field numbers below the message in a field."""
    for part in inside(source, field):
        if part.number == path[0]:
            if len(path) == 1:
                yield part
            else:
                yield from within(source, part, *path[1:])


def last_text(source: FileReader, field: ProtobufField, *path: int, limit: int = 256) -> str:
    """Return the string at a path, the last of several as in protobuf; empty if absent."""
    value = ""
    for part in within(source, field, *path):
        value = text(source, part, limit)
    return value


def text(source: FileReader, field: ProtobufField, limit: int = 256) -> str:
    """Return the string of a field, cut to `limit` bytes."""
    if not field.is_bytes:
        return ""
    data = source.read(field.start, min(field.end - field.start, limit))
    return data.decode("utf-8", "replace")


def numbers(source: FileReader, field: ProtobufField, limit: int = 64) -> list[int]:
    """Return the integers of a repeated field, packed or not."""
    if not field.is_bytes:
        return [signed(field.value)]
    values: list[int] = []
    start = field.start
    while start < field.end and len(values) < limit:
        value, start = varint(source, start, field.end)
        values.append(signed(value))
    return values


def signed(value: int) -> int:
    """Return a varint as a signed `int64`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def varint(source: FileReader, start: int, end: int) -> tuple[int, int]:
    """Return the varint at an offset, and the offset of its end.

    Raises:
        BrokenFileError: It does not end before `end`.
    """
    if start < end and (first := source.byte(start)) < 0x80:  # noqa: PLR2004  # most are one byte
        return first, start + 1
    data = source.read(start, min(_MAX_VARINT_BYTES, end - start, source.size - start))
    value = 0
    for i, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:  # noqa: PLR2004  # the last byte has no high bit
            return value, start + i + 1
    raise BrokenFileError("is truncated or damaged: it ends before its content does")


@dataclass(frozen=True, slots=True)
class FlatbufferTable:
    """A FlatBuffer table; fields have numbers in the schema, absent ones give the default."""

    data: bytes | mmap
    position: int

    @classmethod
    def root(cls, data: bytes | mmap) -> "FlatbufferTable":
        """Return the root table of the data."""
        return cls(data, _unpack("<I", data, 0))

    def number(self, field: int, layout: str, default: float) -> float:
        """Return a number by its `struct` layout."""
        offset = self._place(field)
        return default if offset is None else _unpack(layout, self.data, offset)

    def table(self, field: int) -> "FlatbufferTable | None":
        """Return a nested table; None if it is absent."""
        offset = self._target(field)
        return None if offset is None else FlatbufferTable(self.data, offset)

    def text(self, field: int) -> str:
        """Return a string; empty if it is absent."""
        return self._bytes(field, 1).decode()

    def array(self, field: int, dtype: str) -> Array:
        """Return a list of numbers; empty if it is absent."""
        return np.frombuffer(self._bytes(field, np.dtype(dtype).itemsize), dtype)

    def tables(self, field: int) -> Iterator["FlatbufferTable"]:
        """Yield the tables of a list."""
        offset = self._target(field)
        if offset is None:
            return
        for i in range(_unpack("<I", self.data, offset)):
            slot = offset + 4 + 4 * i
            yield FlatbufferTable(self.data, slot + _unpack("<I", self.data, slot))

    def length(self, field: int) -> int:
        """Return the number of items in a list."""
        offset = self._target(field)
        return 0 if offset is None else _unpack("<I", self.data, offset)

    def _bytes(self, field: int, item_bytes: int) -> bytes:
        offset = self._target(field)
        if offset is None:
            return b""
        end = offset + 4 + item_bytes * _unpack("<I", self.data, offset)
        if end > len(self.data):
            raise ValueError("a list ends beyond the data")
        return self.data[offset + 4 : end]

    def _place(self, field: int) -> int | None:
        fields = self.position - _unpack("<i", self.data, self.position)
        slot = 4 + 2 * field
        if slot + 2 > _unpack("<H", self.data, fields):
            return None
        offset = _unpack("<H", self.data, fields + slot)
        return self.position + offset if offset else None

    def _target(self, field: int) -> int | None:
        offset = self._place(field)
        return None if offset is None else offset + _unpack("<I", self.data, offset)


def _unpack(layout: str, data: bytes | mmap, offset: int) -> int:
    if offset < 0:
        raise ValueError("an offset leads out of the data")
    try:
        number: int = struct.unpack_from(layout, data, offset)[0]
    except struct.error as error:
        raise ValueError("an offset leads out of the data") from error
    return number
