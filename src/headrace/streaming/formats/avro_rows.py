"""Avro values to columns, by the schema that they were written with.

fastavro reads them. To it, neighbouring floats and booleans of a record are one `fixed`: NumPy cuts
that up for all records of a batch at once, which takes a fraction of the time.
"""

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import fastavro
import numpy as np
from fastavro.read import SchemaResolutionError

from headrace.core import Array, InvalidArgumentError
from headrace.streaming.formats import Column, unreadable
from headrace.streaming.formats.avro_schemas import AvroSchema, Node, parse

Row = dict[str, Any]

_BROKEN: Final = (
    EOFError,
    IndexError,
    KeyError,
    ValueError,
    OverflowError,
    struct.error,
    SchemaResolutionError,
)
_PACKED: Final = {"boolean": "u1", "float": "<f4", "double": "<f8"}
_MAX_DECIMAL_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Neighbouring fields of one size each, read as one; `key` is where rows have them."""

    key: str
    dtype: np.dtype
    booleans: frozenset[str]

    def columns(self, rows: Sequence[Row], names: Iterable[str]) -> dict[str, Column]:
        key = self.key
        cut: Array = np.frombuffer(b"".join([row[key] for row in rows]), self.dtype)
        return {
            name: (cut[name] != 0 if name in self.booleans else cut[name]).tolist()
            for name in names
        }


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
        self._runs: list[tuple[_Run, list[str]]] = []
        self._getters: dict[str, Callable[[Row], Any]] = {}
        root, runs = (schema.root, []) if target else _packed(schema.root)
        self._schema = parse(root)
        self._target = None if target is None else parse(target.root)
        in_run = {name: run for run in runs for name in run.dtype.names or ()}
        by_run: dict[str, list[str]] = {}
        for name in (*inputs, *passed):
            node = final.find(name)
            if name in in_run:
                by_run.setdefault(in_run[name].key, []).append(name)
                continue
            scale = _scale_of(final, node)
            if scale is not None and target is not None:
                _check_scale(schema, name, scale)
            self._getters[name] = _getter(name, scale, exact=name in passed)
        self._runs = [(run, by_run[run.key]) for run in runs if run.key in by_run]

    def read(self, value: bytes, at: int) -> Row:
        """The record whose bytes begin at `at`.

        Raises:
            InvalidArgumentError: They are not a record of this schema, or more than one.
        """
        buffer = io.BytesIO(value)
        buffer.seek(at)
        try:
            row: Any = fastavro.schemaless_reader(buffer, self._schema, self._target)
        except _BROKEN as error:
            reason = f"{type(error).__name__}: {error}"
            raise unreadable("Avro of its schema", reason) from None
        left = len(value) - buffer.tell()
        if left:
            reason = f"{left} bytes are left over; was it written with another schema?"
            raise unreadable("Avro of its schema", reason)
        found: Row = row
        return found

    def columns(self, rows: Sequence[Row]) -> dict[str, Column]:
        """The wanted fields of rows that `read` gave."""
        columns: dict[str, Column] = {
            name: [get(row) for row in rows] for name, get in self._getters.items()
        }
        for run, names in self._runs:
            columns.update(run.columns(rows, names))
        return columns


def _packed(root: Node) -> tuple[Node, list[_Run]]:
    """The record, with each run of fields of fixed size as one field."""
    fields: list[Node] = []
    runs: list[_Run] = []
    run: list[Node] = []
    taken = {one["name"] for one in root["fields"]}

    def close() -> None:
        if len(run) < 2:  # noqa: PLR2004  # nothing to win
            fields.extend(run)
        else:
            key = f"run{len(runs)}"
            while key in taken:
                key += "_"
            dtype = np.dtype([(one["name"], _PACKED[one["type"]]) for one in run])
            booleans = frozenset(one["name"] for one in run if one["type"] == "boolean")
            runs.append(_Run(key=key, dtype=dtype, booleans=booleans))
            kind = {"type": "fixed", "name": f"headrace.packed.{key}", "size": dtype.itemsize}
            fields.append({"name": key, "type": kind})
        run.clear()

    for one in root["fields"]:
        if isinstance(one["type"], str) and one["type"] in _PACKED:
            run.append(one)
        else:
            close()
            fields.append(one)
    close()
    return {**root, "fields": fields}, runs


def _getter(name: str, scale: int | None, *, exact: bool) -> Callable[[Row], Any]:
    parts = name.split(".")

    def get(row: Row) -> Any:  # noqa: ANN401  # whatever the field is
        value: Any = row
        for part in parts:
            if value is None:
                return None
            value = value[part]
        return value

    if scale is None:
        return get
    return lambda row: _decimal(get(row), scale, exact=exact)


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
    return f"{sign}{digits[: len(digits) - scale]}.{digits[-scale:]}" if scale else sign + digits


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
