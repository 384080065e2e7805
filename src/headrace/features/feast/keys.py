"""How does Feast write down which entity is meant, and under which field a feature stands?

As `feast/infra/key_encoding_utils.py` (version 3) and `online_stores/helpers.py` of 0.67 do.
"""

import struct
from collections.abc import Mapping
from typing import Final

from headrace.features.definitions import FeatureView
from headrace.features.feast.importing import INT32, INT64, STRING
from headrace.features.keys import Key, decode_key

_INT32: Final = range(-(1 << 31), 1 << 31)
_MASK: Final = 0xFFFFFFFF


class KeyWriter:
    """Writes our keys of one view as Feast's. `types` are Feast's own, by join key."""

    def __init__(self, view: FeatureView, types: Mapping[str, int]) -> None:
        self._view = view
        order = sorted(range(len(view.entities)), key=lambda i: view.entities[i].join_key)
        self._parts = [(i, types[view.entities[i].join_key]) for i in order]
        names = [view.entities[i].join_key.encode() for i in order]
        self._head = struct.pack("<I", len(names)) + b"".join(
            struct.pack("<II", STRING, len(name)) + name for name in names
        )

    def write(self, key: Key) -> bytes | None:
        """Feast's key; None where Feast can have none."""
        values = decode_key(self._view, key)
        made = [self._head]
        for i, kind in self._parts:
            value = values[i]
            if kind == INT64:
                value = struct.pack("<q", int(value))
            elif kind == INT32:
                if int(value) not in _INT32:
                    return None
                value = struct.pack("<i", int(value))
            made.append(struct.pack("<II", kind, len(value)) + value)
        return b"".join(made)


def field_name(view: str, feature: str) -> bytes:
    """The field of a Redis hash in which a feature stands."""
    return struct.pack("<I", murmur3_32(f"{view}:{feature}".encode()))


def murmur3_32(data: bytes) -> int:
    """MurmurHash3_x86_32 with seed 0, of https://github.com/aappleby/smhasher."""
    made, end = 0, len(data) // 4 * 4
    for (block,) in struct.iter_unpack("<I", data[:end]):
        made = _rotated(made ^ _mixed(block), 13) * 5 + 0xE6546B64 & _MASK
    if end < len(data):
        made ^= _mixed(int.from_bytes(data[end:], "little"))
    made ^= len(data)
    made = (made ^ made >> 16) * 0x85EBCA6B & _MASK
    made = (made ^ made >> 13) * 0xC2B2AE35 & _MASK
    return made ^ made >> 16


def _mixed(block: int) -> int:
    return _rotated(block * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK


def _rotated(number: int, bits: int) -> int:
    return (number << bits | number >> 32 - bits) & _MASK
