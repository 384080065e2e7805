"""Conversion of Avro values to columns, by their writer schema and an optional reader schema.

fastavro reads all records except those of numbers: a flat record, most of whose fields have a fixed
size, is unpacked here in runs of neighbouring fields, in a ninth to a third of fastavro's time
(`docs/explain/decisions/own-code.md`). Any bytes are safe to read
(https://avro.apache.org/docs/1.12.0/specification/#binary-encoding).
"""

import io
import struct
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import fastavro
from fastavro.read import SchemaResolutionError

from headrace.core import InvalidArgumentError
from headrace.streaming.formats import Column, unreadable
from headrace.streaming.formats.avro_schemas import AvroSchema, Node, parse

Row = list[Any]
"""The values of the record's fields, in the schema's order."""
Step = Callable[[bytes, int, Row], int]
"""Reads at an offset of a value, appends what it read, and returns where the next one begins."""

_UNREADABLE: Final = (
    EOFError,
    IndexError,
    ValueError,
    KeyError,
    OverflowError,
    struct.error,
    SchemaResolutionError,
)
_FIXED_SIZE: Final = {"boolean": "?", "float": "f", "double": "d"}
_MAX_SHIFT: Final = 63
_MORE: Final = 0x80
_MAX_DECIMAL_BYTES: Final = 64


class RowReader:
    """Reads records of one schema.

    Args:
        schema: Writer schema.
        target: Reader schema, for Avro's schema resolution; None for the writer's.
        inputs: Dotted paths of fields that become numbers, decimals included.
        passed: Dotted paths of fields that are passed on; decimals as text, so that they stay
            exact.

    Raises:
        InvalidArgumentError: The schema lacks a field.
    """

    def __init__(
        self,
        schema: AvroSchema,
        target: AvroSchema | None,
        *,
        inputs: Sequence[str],
        passed: Sequence[str],
    ) -> None:
        final = target or schema
        indexes = {field["name"]: index for index, field in enumerate(final.root["fields"])}
        self._getters: dict[str, Callable[[Row], Any]] = {}
        for name in (*inputs, *passed):
            scale = _scale_of(final, final.find(name))
            if scale is not None and target is not None:
                _check_scale(schema, name, scale)
            self._getters[name] = _getter(indexes, name, scale, exact=name in passed)
        plain = _plain_numbers(schema) if target is None else None
        self._step = plain or _any_record(schema, target)

    def read(self, value: bytes, offset: int) -> Row:
        """Return the record at an offset.

        Raises:
            InvalidArgumentError: The bytes are not a record of this schema, or more than one.
        """
        row: Row = []
        try:
            end = self._step(value, offset, row)
        except _UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}"
            raise unreadable("Avro of its schema", reason) from None
        if end != len(value):
            reason = f"{len(value) - end} bytes are left over; was it written with another schema?"
            raise unreadable("Avro of its schema", reason)
        return row

    def columns(self, rows: Sequence[Row]) -> dict[str, Column]:
        """Return the requested fields of rows that `read` returned."""
        return {name: list(map(get, rows)) for name, get in self._getters.items()}


def _plain_numbers(schema: AvroSchema) -> Step | None:
    """Return a step for records of numbers and arrays of numbers; None for other schemas."""
    kinds = [field["type"] for field in schema.root["fields"]]
    if 2 * sum(str(kind) in _VARYING for kind in kinds) > len(kinds):
        return None  # fastavro reads integers and texts faster
    steps: list[Step] = []
    for is_run, group in groupby(kinds, lambda kind: str(kind) in _FIXED_SIZE):
        if is_run:
            steps.append(_run("".join(map(_FIXED_SIZE.__getitem__, group))))
            continue
        for kind in group:
            step = _field_step(kind)
            if step is None:
                return None
            steps.append(step)
    if len(steps) == 1:
        return steps[0]

    def record(data: bytes, offset: int, out: Row) -> int:
        for step in steps:
            offset = step(data, offset, out)
        return offset

    return record


def _field_step(kind: Node) -> Step | None:
    if isinstance(kind, str):
        return _VARYING.get(kind)
    if isinstance(kind, dict):
        items = str(kind.get("items"))
        return _array(_FIXED_SIZE[items]) if items in _FIXED_SIZE else None
    other = [part for part in kind if part != "null"]
    if len(kind) == len(other) + 1 and len(other) == 1 and str(other[0]) in _FIXED_SIZE:
        return _nullable(kind.index("null") * 2, _FIXED_SIZE[other[0]])
    return None


def _long(data: bytes, offset: int) -> tuple[int, int]:
    byte = data[offset]
    offset += 1
    value, shift = byte & 0x7F, 7
    while byte >= _MORE:
        if shift > _MAX_SHIFT:
            raise ValueError("a number of more than 64 bits")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return (value >> 1) ^ -(value & 1), offset


def _integer(data: bytes, offset: int, out: Row) -> int:
    value, offset = _long(data, offset)
    out.append(value)
    return offset


def _text(data: bytes, offset: int, out: Row) -> int:
    size, offset = _long(data, offset)
    end = offset + size
    if size < 0 or end > len(data):
        raise EOFError(f"{size} bytes announced, {len(data) - offset} there")
    out.append(data[offset:end].decode())
    return end


_VARYING: Final[dict[str, Step]] = {"int": _integer, "long": _integer, "string": _text}


def _run(codes: str) -> Step:
    """Return a step that reads consecutive numbers of fixed size at once."""
    packed = struct.Struct(f"<{codes}")
    unpack, size = packed.unpack_from, packed.size

    def run(data: bytes, offset: int, out: Row) -> int:
        out += unpack(data, offset)
        return offset + size

    return run


def _nullable(null: int, code: str) -> Step:
    """Return a step for a union of null and a number; `null` is the null branch's byte, 0 or 2."""
    packed = struct.Struct(f"<{code}")
    unpack, size = packed.unpack_from, packed.size + 1

    def nullable(data: bytes, offset: int, out: Row) -> int:
        branch = data[offset]
        if branch == null:
            out.append(None)
            return offset + 1
        if branch != 2 - null:
            raise IndexError("union branch")
        out += unpack(data, offset + 1)
        return offset + size

    return nullable


def _array(code: str) -> Step:
    """Return a step for an array of numbers; counts beyond the value's length are rejected."""
    size = struct.calcsize(f"<{code}")

    def array(data: bytes, offset: int, out: Row) -> int:
        items: list[Any] = []
        while True:
            count, offset = _long(data, offset)
            if not count:
                out.append(items)
                return offset
            if count < 0:
                count = -count
                _, offset = _long(data, offset)  # the block's bytes; only needed to skip it
            if count * size > len(data) - offset:
                raise EOFError(f"{count} items announced, {len(data) - offset} bytes there")
            items += struct.unpack_from(f"<{count}{code}", data, offset)
            offset += count * size

    return array


def _any_record(schema: AvroSchema, target: AvroSchema | None) -> Step:
    """Return a step that reads the record with fastavro.

    With a target, the value is read twice: schema resolution skips fields without checking their
    lengths, and a negative length could make it loop.
    """
    written = parse(schema.root)
    reader_schema = None if target is None else parse(target.root)
    names = [field["name"] for field in (target or schema).root["fields"]]

    def step(data: bytes, offset: int, out: Row) -> int:
        buffer = io.BytesIO(data)
        buffer.seek(offset)
        record: Any = fastavro.schemaless_reader(buffer, written, None)
        end = buffer.tell()
        if reader_schema is not None:
            buffer.seek(offset)
            record = fastavro.schemaless_reader(buffer, written, reader_schema)
        out += [record[name] for name in names]
        return end

    return step


def _getter(
    positions: dict[str, int], name: str, scale: int | None, *, exact: bool
) -> Callable[[Row], Any]:
    first, *parts = name.split(".")
    outer: Callable[[Row], Any] = itemgetter(positions[first])
    if not parts and scale is None:
        return outer

    def get(row: Row) -> Any:  # noqa: ANN401  # a value of any field type
        value = outer(row)
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
