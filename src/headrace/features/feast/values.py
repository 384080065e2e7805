"""Encoding of keys and values in Feast's online stores.

The format is that of `feast/infra/key_encoding_utils.py` (version 3) and `online_stores/helpers.py`
of Feast 0.67. Values are parsed without protobuf: a request reads about thirty values, and a
message object for each would cost more than the rest of the read.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from headrace.core import Datatype
from headrace.features.definitions import FeatureView, Value
from headrace.features.feast.importing import INT32, INT64, STRING
from headrace.features.records import Key, Record, RecordLayout, decode_key

DAMAGED: Final[Record] = b""
"""Marks a value that cannot be read: not a valid record, so the status is MISSING with a reason."""
_FLOAT: Final = struct.Struct("<f").unpack_from
_DOUBLE: Final = struct.Struct("<d").unpack_from
_NULL: Final = b"\x98\x01"
_SIGN: Final = 1 << 63
_US: Final = 1_000_000
_MORE: Final = 0x80
"""Continuation bit of a varint byte."""
# The first byte of a message: field number and wire type.
_BYTES, _STRING, _INT32, _INT64, _FP64, _FP32, _BOOL = 0x0A, 0x12, 0x18, 0x20, 0x29, 0x35, 0x38
_FP32_BYTES: Final = 5
_SECONDS, _NANOS = 0x08, 0x10
_FITTING: Final[Mapping[Datatype, frozenset[int]]] = {
    Datatype.FP32: frozenset({_FP32}),
    Datatype.FP64: frozenset({_FP64, _FP32}),
    Datatype.INT64: frozenset({_INT64, _INT32}),
    Datatype.BOOL: frozenset({_BOOL}),
    Datatype.BYTES: frozenset({_BYTES, _STRING}),
}


class WrongValueError(ValueError):
    """The bytes are not a value, or a value of another type."""


class RecordWriter:
    """Converts Feast's values of one view and entity to a Headrace record."""

    def __init__(self, layout: RecordLayout, datatypes: Sequence[Datatype]) -> None:
        self._layout = layout
        self._fitting = [_FITTING[datatype] for datatype in datatypes]
        is_all_floats = all(datatype is Datatype.FP32 for datatype in datatypes)
        self._floats = struct.Struct("<" + "xf" * len(datatypes)) if is_all_floats else None
        self._kinds = bytes([_FP32]) * len(datatypes)

    def write(self, event_us: int, values: Sequence[bytes | None]) -> Record:
        """Return the record of one encoded value or None per feature; `DAMAGED` if unreadable."""
        read: Sequence[Value | None] | None = self._read_floats(values)
        if read is None:
            try:
                read = [
                    read_value(data, fitting) if data else None
                    for data, fitting in zip(values, self._fitting, strict=True)
                ]
            except (WrongValueError, struct.error, IndexError):
                return DAMAGED
        return self._layout.pack(event_us, read)

    def _read_floats(self, values: Sequence[bytes | None]) -> Sequence[float] | None:
        """Return all values if each feature is FP32 and has one; None for other rows."""
        if self._floats is None or None in values:
            return None
        data = b"".join([value or b"" for value in values])
        is_right = len(data) == self._floats.size and data[::_FP32_BYTES] == self._kinds
        if not is_right or max(map(len, filter(None, values))) != _FP32_BYTES:
            return None
        return self._floats.unpack(data)


def read_value(data: bytes, fitting: frozenset[int]) -> Value | None:
    """Decode a value of one of the `fitting` kinds; None if it is null."""
    kind = data[0]
    if kind not in fitting:
        if data[:2] == _NULL:
            return None
        raise WrongValueError
    value: Value
    if kind == _FP32:
        (value,), end = _FLOAT(data, 1), 5
    elif kind == _FP64:
        (value,), end = _DOUBLE(data, 1), 9
    else:
        number, end = _varint(data, 1)
        if kind in {_BYTES, _STRING}:
            value, end = data[end : end + number], end + number
        elif kind == _BOOL:
            value = number != 0
        else:
            value = number - (number & _SIGN) * 2
    if end != len(data):
        raise WrongValueError
    return value


def read_time_us(data: bytes) -> int:
    """Return a protobuf `Timestamp` in microseconds since 1970; raise `WrongValueError`."""
    seconds = nanos = end = 0
    while end < len(data):
        kind = data[end]
        number, end = _varint(data, end + 1)
        if kind == _SECONDS:
            seconds = number - (number & _SIGN) * 2
        elif kind == _NANOS:
            nanos = number
        else:
            raise WrongValueError
    return seconds * _US + nanos // 1000


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Decode a protobuf varint; return it and the position after it."""
    number = shift = 0
    for end in range(start, min(start + 10, len(data))):
        byte = data[end]
        number |= (byte & ~_MORE) << shift
        if byte < _MORE:
            return number, end + 1
        shift += 7
    raise WrongValueError


_INT32_RANGE: Final = range(-(1 << 31), 1 << 31)
_MASK: Final = 0xFFFFFFFF


class KeyWriter:
    """Converts Headrace keys of one view to Feast's encoding. `types` are Feast's, by join key."""

    def __init__(self, view: FeatureView, types: Mapping[str, int]) -> None:
        self._view = view
        order = sorted(range(len(view.entities)), key=lambda i: view.entities[i].join_key)
        self._parts = [(i, types[view.entities[i].join_key]) for i in order]
        names = [view.entities[i].join_key.encode() for i in order]
        self._head = struct.pack("<I", len(names)) + b"".join(
            struct.pack("<II", STRING, len(name)) + name for name in names
        )

    def write(self, key: Key) -> bytes | None:
        """Return Feast's form of a key; None if Feast cannot have such a key."""
        values = decode_key(self._view, key)
        parts = [self._head]
        for i, kind in self._parts:
            value = values[i]
            if kind == INT64:
                value = struct.pack("<q", int(value))
            elif kind == INT32:
                if int(value) not in _INT32_RANGE:
                    return None
                value = struct.pack("<i", int(value))
            parts.append(struct.pack("<II", kind, len(value)) + value)
        return b"".join(parts)


def field_name(view: str, feature: str) -> bytes:
    """Return the field of a Redis hash that holds a feature."""
    return struct.pack("<I", murmur3_32(f"{view}:{feature}".encode()))


def murmur3_32(data: bytes) -> int:
    """Return MurmurHash3_x86_32 with seed 0, of https://github.com/aappleby/smhasher."""
    state, end = 0, len(data) // 4 * 4
    for (block,) in struct.iter_unpack("<I", data[:end]):
        state = _rotated(state ^ _mixed(block), 13) * 5 + 0xE6546B64 & _MASK
    if end < len(data):
        state ^= _mixed(int.from_bytes(data[end:], "little"))
    state ^= len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B & _MASK
    state = (state ^ state >> 13) * 0xC2B2AE35 & _MASK
    return state ^ state >> 16


def _mixed(block: int) -> int:
    return _rotated(block * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK


def _rotated(number: int, bits: int) -> int:
    return (number << bits | number >> 32 - bits) & _MASK
