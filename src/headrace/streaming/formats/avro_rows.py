"""Avro values to columns, by the schema that they were written with, and maybe one to read as."""

import io
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final

import fastavro
from fastavro.read import SchemaResolutionError

from headrace.core import InvalidArgumentError
from headrace.streaming.formats import Column, unreadable
from headrace.streaming.formats.avro_decoding import BROKEN, Step, decoder
from headrace.streaming.formats.avro_schemas import AvroSchema, Node, parse

Row = list[Any]
"""The values of the record's fields, in the schema's order."""

_UNRESOLVED: Final = (*BROKEN, KeyError, OverflowError, SchemaResolutionError)
_MAX_DECIMAL_BYTES: Final = 64


class RowReader:
    """Reads records of one schema.

    Args:
        schema: That they were written with.
        target: That they are read as, by Avro's schema resolution; None for what they are.
        inputs: Dotted paths of what becomes numbers; decimals do too.
        passed: Dotted paths of what is passed on; decimals as text, so that they stay exact.

    Raises:
        InvalidArgumentError: The schema does not have a field.
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
        places = {one["name"]: at for at, one in enumerate(final.root["fields"])}
        self._getters: dict[str, Callable[[Row], Any]] = {}
        for name in (*inputs, *passed):
            scale = _scale_of(final, final.find(name))
            if scale is not None and target is not None:
                _check_scale(schema, name, scale)
            self._getters[name] = _getter(places, name, scale, exact=name in passed)
        self._step = decoder(schema) if target is None else _resolving(schema, target)

    def read(self, value: bytes, at: int) -> Row:
        """The record whose bytes begin at `at`.

        Raises:
            InvalidArgumentError: They are not a record of this schema, or more than one.
        """
        row: Row = []
        try:
            end = self._step(value, at, row)
        except _UNRESOLVED as error:
            reason = f"{type(error).__name__}: {error}"
            raise unreadable("Avro of its schema", reason) from None
        if end != len(value):
            reason = f"{len(value) - end} bytes are left over; was it written with another schema?"
            raise unreadable("Avro of its schema", reason)
        return row

    def columns(self, rows: Sequence[Row]) -> dict[str, Column]:
        """The wanted fields of rows that `read` gave."""
        return {name: list(map(get, rows)) for name, get in self._getters.items()}


def _resolving(schema: AvroSchema, target: AvroSchema) -> Step:
    """A step that leaves schema resolution to fastavro.

    It passes over what nobody wants without a look, so the value is read here first.
    """
    check = decoder(schema)
    written, wanted = parse(schema.root), parse(target.root)
    names = [one["name"] for one in target.root["fields"]]

    def step(data: bytes, at: int, out: list[Any]) -> int:
        end = check(data, at, [])
        buffer = io.BytesIO(data)
        buffer.seek(at)
        row: Any = fastavro.schemaless_reader(buffer, written, wanted)
        out += [row[name] for name in names]
        return end

    return step


def _getter(
    places: dict[str, int], name: str, scale: int | None, *, exact: bool
) -> Callable[[Row], Any]:
    first, *parts = name.split(".")
    outer: Callable[[Row], Any] = itemgetter(places[first])
    if not parts and scale is None:
        return outer

    def get(row: Row) -> Any:  # noqa: ANN401  # whatever the field is
        value = outer(row)
        for part in parts:
            if value is None:
                return None
            value = value[part]
        return value if scale is None else _decimal(value, scale, exact=exact)

    return get


def _decimal(value: object, scale: int, *, exact: bool) -> object:
    """A decimal's number; text if it has to be exact.

    Bytes that are no sensible number stay as they are, to be refused as an input.
    """
    if not isinstance(value, bytes) or len(value) > _MAX_DECIMAL_BYTES:
        return value
    unscaled = int.from_bytes(value, "big", signed=True)
    if not exact:
        return unscaled / 10**scale
    sign, digits = "-" if unscaled < 0 else "", str(abs(unscaled)).rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else sign + digits


def _scale_of(schema: AvroSchema, node: Node) -> int | None:
    """Where the point is, if `node` is a decimal or a nullable one."""
    for one in node if isinstance(node, list) else [node]:
        found = schema.resolved(one)
        if isinstance(found, dict) and "scale" in found:
            scale: int = found["scale"]
            return scale
    return None


def _check_scale(schema: AvroSchema, name: str, scale: int) -> None:
    """Schema resolution does not move the point of a decimal."""
    try:
        written = _scale_of(schema, schema.find(name))
    except InvalidArgumentError:  # by another name, or not there: a default
        return
    if written is not None and written != scale:
        msg = f"field '{name}' was written with {written} decimal places, but is read with {scale}"
        raise InvalidArgumentError(msg)
