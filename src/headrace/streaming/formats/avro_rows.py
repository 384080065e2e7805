"""Conversion of Avro values to columns, by their writer schema and an optional reader schema.

Any bytes are safe to read
(https://avro.apache.org/docs/1.12.0/specification/#binary-encoding).
"""

import io
import struct
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final

import fastavro
from fastavro.read import SchemaResolutionError

from headrace.core import InvalidArgumentError
from headrace.streaming.formats import unreadable
from headrace.streaming.formats.avro_schemas import AvroSchema, Node
from headrace.streaming.formats.schema_values import RowReader

_UNREADABLE: Final = (
    EOFError,
    IndexError,
    ValueError,
    KeyError,
    OverflowError,
    struct.error,
    SchemaResolutionError,
)
_MAX_DECIMAL_BYTES: Final = 64


def row_reader(
    schema: AvroSchema, target: AvroSchema | None, *, inputs: Sequence[str], passed: Sequence[str]
) -> RowReader:
    """Return the reader of one schema's records.

    With a target, a value is read twice: schema resolution skips fields without checking their
    lengths, and a negative length could make it loop.

    Args:
        schema: Writer schema.
        target: Reader schema, for Avro's schema resolution; None for the writer's.
        inputs: Dotted paths of fields that become numbers, decimals included.
        passed: Dotted paths of fields that are passed on; decimals as text, so that they stay
            exact.

    Raises:
        InvalidArgumentError: The schema lacks a field.
    """
    getters: dict[str, Callable[[Any], Any]] = {}
    for name in (*inputs, *passed):
        final = target or schema
        scale = _scale_of(final, final.find(name))
        if scale is not None and target is not None:
            _check_scale(schema, name, scale)
        getters[name] = _getter(name, scale, exact=name in passed)
    written, reader = schema.root, None if target is None else target.root

    def parse(value: bytes, offset: int) -> Any:  # noqa: ANN401  # a record of any schema
        buffer = io.BytesIO(value)
        buffer.seek(offset)
        try:
            record = fastavro.schemaless_reader(buffer, written, None)
            end = buffer.tell()
            if reader is not None:
                buffer.seek(offset)
                record = fastavro.schemaless_reader(buffer, written, reader)
        except _UNREADABLE as error:
            is_short = isinstance(error, EOFError)
            reason = "it ends too early" if is_short else f"{type(error).__name__}: {error}"
            raise unreadable("Avro of its schema", reason) from None
        if end != len(value):
            reason = f"{len(value) - end} bytes are left over; was it written with another schema?"
            raise unreadable("Avro of its schema", reason)
        return record

    return RowReader(parse=parse, getters=getters)


def _getter(name: str, scale: int | None, *, exact: bool) -> Callable[[Any], Any]:
    first, *parts = name.split(".")
    outer: Callable[[Any], Any] = itemgetter(first)
    if not parts and scale is None:
        return outer

    def get(record: Any) -> Any:  # noqa: ANN401  # a value of any field type
        value = outer(record)
        for part in parts:
            if value is None:
                return None
            value = value[part]
        return value if scale is None else _decimal(value, scale, exact=exact)

    return get


def _decimal(value: object, scale: int, *, exact: bool) -> object:
    """Return a decimal as a number; as text if `exact`.

    Bytes that are not a valid decimal are returned unchanged, and rejected later as an input.
    """
    if not isinstance(value, bytes) or len(value) > _MAX_DECIMAL_BYTES:
        return value
    unscaled = int.from_bytes(value, "big", signed=True)
    if not exact:
        return unscaled / 10**scale
    sign, digits = "-" if unscaled < 0 else "", str(abs(unscaled)).rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else sign + digits


def _scale_of(schema: AvroSchema, node: Node) -> int | None:
    """Return the scale of a decimal or nullable decimal; None for other types."""
    for branch in node if isinstance(node, list) else [node]:
        definition = schema.resolved(branch)
        if isinstance(definition, dict) and "scale" in definition:
            scale: int = definition["scale"]
            return scale
    return None


def _check_scale(schema: AvroSchema, name: str, scale: int) -> None:
    """Raise if a decimal's scale differs: Avro's schema resolution does not convert it."""
    try:
        written = _scale_of(schema, schema.find(name))
    except InvalidArgumentError:  # renamed by an alias, or absent: it has a default
        return
    if written is not None and written != scale:
        msg = f"field '{name}' was written with {written} decimal places, but is read with {scale}"
        raise InvalidArgumentError(msg)
