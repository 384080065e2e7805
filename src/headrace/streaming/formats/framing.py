"""Confluent's wire format: which schema was a value written with, and where does it begin?

A zero byte, the schema's id in four bytes, big-endian; for Protobuf then the path of the message
in its file, as zigzag varints: how many steps, and each one. A single zero stands for the first one
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/).
"""

import struct
from typing import Final

from headrace.core import InvalidArgumentError

_HEAD: Final = struct.Struct(">bi")
_MAX_STEPS: Final = 64
_MAX_VARINT: Final = 5  # bytes of 32 bits
_GUID_MAGIC: Final = 1


def schema_id(value: bytes) -> int:
    """The id of the schema that `value` was written with; the rest begins at `HEAD_BYTES`.

    Raises:
        InvalidArgumentError: It does not begin as the wire format does.
    """
    if len(value) < HEAD_BYTES:
        msg = f"the value has {len(value)} bytes: too short for Confluent's wire format"
        raise InvalidArgumentError(msg)
    magic, found = _HEAD.unpack_from(value)
    if magic:
        is_guid = magic == _GUID_MAGIC
        what = "names its schema by a GUID" if is_guid else f"begins with the byte {magic & 255}"
        msg = (
            f"the value {what}, not with 0 and a schema's id as Confluent's wire format does; "
            "if it was written without a registry, leave options.registry out"
        )
        raise InvalidArgumentError(msg)
    if found < 0:  # registries answer that as if they were something else
        msg = f"the value names the schema {found}, which no registry has"
        raise InvalidArgumentError(msg)
    return int(found)


def head(found_id: int) -> bytes:
    """What an Avro value begins with."""
    return _HEAD.pack(0, found_id)


def message_path(value: bytes) -> tuple[tuple[int, ...], int]:
    """The path of a Protobuf value's message in its file, and where its own bytes begin.

    Raises:
        InvalidArgumentError: There is no path.
    """
    steps, at = _zigzag(value, HEAD_BYTES)
    if not steps:
        return (0,), at
    if not 0 < steps <= _MAX_STEPS:
        msg = f"the value's message indexes are {steps} steps deep, which no message is"
        raise InvalidArgumentError(msg)
    path = []
    for _ in range(steps):
        step, at = _zigzag(value, at)
        path.append(step)
    return tuple(path), at


def message_head(found_id: int, path: tuple[int, ...]) -> bytes:
    """What a Protobuf value begins with."""
    if path == (0,):
        return head(found_id) + b"\0"
    return head(found_id) + b"".join(map(_varint, (len(path), *path)))


def _zigzag(value: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    for end in range(at, min(at + _MAX_VARINT, len(value))):
        byte = value[end]
        found |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004  # the last one has no high bit
            return (found >> 1) ^ -(found & 1), end + 1
        shift += 7
    msg = "the value's message indexes are broken off or too long"
    raise InvalidArgumentError(msg)


def _varint(number: int) -> bytes:
    number <<= 1
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004  # seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


HEAD_BYTES: Final = _HEAD.size
