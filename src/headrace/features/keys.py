"""How does an entity become a key of the online store? Equal entities make equal bytes, others not.

A key reads as `customer:17`; several values stand each behind their length, as in
`customer,shop:2:17,4:a,b.`, so that no text can pass for two values.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from headrace.core import Datatype, InvalidArgumentError
from headrace.features.definitions import Entity, FeatureView

MAX_KEY_BYTES: Final = 1024
_INT64: Final = np.iinfo(np.int64)
_SHOWN: Final = 60

Key = bytes


def key_prefix(view: FeatureView) -> bytes:
    """What the keys of all views of the same entities begin with."""
    return f"{','.join(entity.name for entity in view.entities)}:".encode()


def encode_keys(view: FeatureView, columns: Sequence[Sequence[object]]) -> list[Key]:
    """A key for each row of `columns`, which are the view's join keys in order, of equal length.

    Raises:
        InvalidArgumentError: A value is none of an entity's; it says in which row.
    """
    prefix = key_prefix(view)
    parts = [
        _encode_column(entity, column)
        for entity, column in zip(view.entities, columns, strict=True)
    ]
    if len(parts) == 1:
        return [prefix + part for part in parts[0]]
    return [
        prefix + b",".join(b"%d:%b" % (len(part), part) for part in row)
        for row in zip(*parts, strict=True)
    ]


def decode_key(view: FeatureView, key: Key) -> list[bytes]:
    """What `encode_keys` made a key of: the text of each of the view's join keys, in order."""
    rest = key.removeprefix(key_prefix(view))
    if len(view.entities) == 1:
        return [rest]
    values = []
    for _ in view.entities:
        length, _, rest = rest.partition(b":")
        values.append(rest[: int(length)])
        rest = rest[int(length) + 1 :]
    return values


def show_key(key: Key) -> str:
    """A key for people: `customer:17`."""
    text = key.decode(errors="replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _encode_column(entity: Entity, column: Sequence[object]) -> list[bytes]:
    encode = _encode_number if entity.datatype is Datatype.INT64 else _encode_text
    found = []
    for row, value in enumerate(column):
        try:
            found.append(encode(value))
        except ValueError as error:
            shown = repr(value)[:_SHOWN]
            message = f"{entity.join_key}[{row}]: {shown} names no {entity.name}; {error}"
            raise InvalidArgumentError(message) from None
    return found


def _encode_number(value: object) -> bytes:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError("it has to be a whole number (INT64)")  # noqa: TRY004  # told with its row
    if not _INT64.min <= value <= _INT64.max:
        raise ValueError("it has to fit 64 bits")
    return b"%d" % value


def _encode_text(value: object) -> bytes:
    if not isinstance(value, str | bytes):
        raise ValueError("it has to be text (BYTES)")  # noqa: TRY004  # told with its row
    try:
        encoded = value.encode() if isinstance(value, str) else bytes(value)
    except UnicodeEncodeError:
        raise ValueError("it has half a character, which UTF-8 cannot say") from None
    if not encoded or len(encoded) > MAX_KEY_BYTES:
        raise ValueError(f"it has to have 1 to {MAX_KEY_BYTES} bytes")
    return encoded
