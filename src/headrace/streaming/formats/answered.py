"""What answers' fields are called, and their values as plain ones: for formats with schemas."""

import re
from collections.abc import Mapping
from typing import Final, cast

import numpy as np

from headrace.core import Datatype, InvalidArgumentError
from headrace.streaming.formats import Column, Layout

_ODD: Final = re.compile(r"[^A-Za-z0-9_]")
INTEGERS: Final = frozenset(
    {
        Datatype.INT8,
        Datatype.INT16,
        Datatype.INT32,
        Datatype.INT64,
        Datatype.UINT8,
        Datatype.UINT16,
        Datatype.UINT32,
        Datatype.UINT64,
    }
)


def field_names(layout: Layout, names: Mapping[str, str]) -> dict[str, str]:
    """What each field that answers have is called in them.

    Schemas allow letters, digits and underscores: what else a name has becomes an underscore, where
    `names` does not say otherwise.

    Raises:
        InvalidArgumentError: Two are called the same.
    """
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in (*layout.answered, *(spec.name for spec in layout.outputs)):
        plain = _ODD.sub("_", name)
        called = names.get(name) or (f"_{plain}" if plain[:1].isdigit() else plain)
        if called in taken:
            msg = f"answers would call both '{taken[called]}' and '{name}' '{called}': see names"
            raise InvalidArgumentError(f"{msg} in the options")
        taken[called] = name
        found[name] = called
    return found


def plain_values(column: Column, rows: int, *, is_scalar: bool, is_text: bool) -> list[object]:
    """A value for each row: numbers, texts or `bytes`, or lists of them.

    Args:
        is_scalar: The schema has one value where the output may have a list of one.
        is_text: BYTES are texts in the schema.

    Raises:
        InvalidArgumentError: A text is not UTF-8.
    """
    if not isinstance(column, np.ndarray):
        return list(column)
    array = column.reshape(rows) if is_scalar else column
    values = cast("list[object]", array.tolist())
    if array.dtype.kind not in "OSU":
        return values
    return [_element(value, is_text=is_text) for value in values]


def _element(value: object, *, is_text: bool) -> object:
    if isinstance(value, list):
        return [_element(one, is_text=is_text) for one in value]
    if not is_text:
        return value.encode() if isinstance(value, str) else value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            msg = "an output's BYTES are not UTF-8, but the answers' schema has a text there"
            raise InvalidArgumentError(msg) from None
    return value
