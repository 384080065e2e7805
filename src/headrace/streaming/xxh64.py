"""XXH64, as the gateway hashes keys: from xxHash's specification 0.1.1 (Collet, 2018).

For keys of some ten bytes, a few microseconds each; there is no package for it among ours.
"""

import struct
from typing import Final

_MASK: Final = (1 << 64) - 1
_P1: Final = 0x9E3779B185EBCA87
_P2: Final = 0xC2B2AE3D27D4EB4F
_P3: Final = 0x165667B19E3779F9
_P4: Final = 0x85EBCA77C2B2AE63
_P5: Final = 0x27D4EB2F165667C5
_STRIPE: Final = 32
_LANE: Final = 8
_HALF: Final = 4


def xxh64(data: bytes, seed: int = 0) -> int:
    """The hash of `data`, 0 to 2^64 - 1."""
    at, size = 0, len(data)
    if size >= _STRIPE:
        lanes = [seed + _P1 + _P2, seed + _P2, seed, seed - _P1]
        while at + _STRIPE <= size:
            for i, value in enumerate(struct.unpack_from("<4Q", data, at)):
                lanes[i] = _round(lanes[i], value)
            at += _STRIPE
        mixed = sum(_left(lane & _MASK, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True))
        for lane in lanes:
            mixed = ((mixed ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        mixed = seed + _P5
    return _finish((mixed + size) & _MASK, data, at)


def _finish(mixed: int, data: bytes, at: int) -> int:
    size = len(data)
    while at + _LANE <= size:
        (value,) = struct.unpack_from("<Q", data, at)
        mixed = (_left(mixed ^ _round(0, value), 27) * _P1 + _P4) & _MASK
        at += _LANE
    if at + _HALF <= size:
        (value,) = struct.unpack_from("<I", data, at)
        mixed = (_left(mixed ^ ((value * _P1) & _MASK), 23) * _P2 + _P3) & _MASK
        at += _HALF
    for byte in data[at:]:
        mixed = (_left(mixed ^ ((byte * _P5) & _MASK), 11) * _P1) & _MASK
    mixed = ((mixed ^ (mixed >> 33)) * _P2) & _MASK
    mixed = ((mixed ^ (mixed >> 29)) * _P3) & _MASK
    return mixed ^ (mixed >> 32)


def _round(lane: int, value: int) -> int:
    return (_left((lane + value * _P2) & _MASK, 31) * _P1) & _MASK


def _left(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & _MASK
