"""Reader and writer of values with a schema from a registry or a file: Avro and Protobuf.

With a registry, values begin as in Confluent's wire format (see `registry.py`). Each format
converts a schema to a reader and a writer of single values.
"""

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import EncodeError

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, FieldLayout, Fields, without_value
from headrace.streaming.formats.options import SchemaOptions, field_names, read_options
from headrace.streaming.formats.registry import Registered, Schema, SchemaRegistry, schema_id
from headrace.streaming.records import Record

_MAX_READERS: Final = 1024
MessagePath = tuple[int, ...]
S = TypeVar("S")
_UNFIT: Final = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    AttributeError,
    EncodeError,
    struct.error,
)
"""Errors of fastavro and protobuf for a row that does not fit its schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reads values of one schema."""

    parse: Callable[[bytes, int], Any]
    """Returns the row at an offset of a value; raises InvalidArgumentError if it is invalid."""
    getters: Mapping[str, Callable[[Any], Any]]
    """Returns a field's value of a row, by the field's name."""

    def columns(self, rows: Sequence[Any]) -> dict[str, Column]:
        """Return the requested fields of rows that `parse` returned."""
        return {name: list(map(get, rows)) for name, get in self.getters.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWriter:
    """Writes answers with one schema."""

    kind: str
    """What describes an answer, for errors."""
    head: bytes
    """Prefix of each value."""
    called: Mapping[str, str]
    """Name in the schema of each field, by its name in the answers."""
    values: Mapping[str, Callable[[Column, int], list[object]]]
    """Returns a field's value for each row."""
    encode: Callable[[dict[str, object]], bytes]
    """Returns the bytes of a row, by names in the schema."""

    def write(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """Return a value for each row.

        Raises:
            InvalidArgumentError: A row does not fit the schema.
        """
        lists = [self.values[name](columns[name], rows) for name in self.called]
        called, head, encode = list(self.called.values()), self.head, self.encode
        try:
            return [
                head + encode(dict(zip(called, values, strict=True)))
                for values in (zip(*lists, strict=True) if lists else [()] * rows)
            ]
        except _UNFIT as error:
            msg = f"the answer is not as its {self.kind} says: {type(error).__name__}: {error}"
            raise InvalidArgumentError(msg[:400]) from None


def names_in_schema(
    layout: FieldLayout, names: Mapping[str, str], fields: Mapping[str, bool]
) -> dict[str, str]:
    """Return the name in the schema of each field of answers.

    Args:
        names: As in the options.
        fields: Whether a field of the schema is required, by its name.

    Raises:
        InvalidArgumentError: The schema lacks a field, or requires one that answers do not have.
    """
    called = field_names(layout, names)
    for name, schema_name in called.items():
        if schema_name not in fields:
            there = ", ".join(list(fields)[:20])
            msg = f"answers have '{name}', but their schema has no '{schema_name}', only: {there}"
            raise InvalidArgumentError(f"{msg}; see options.names, or choose another sink_format")
    for schema_name, is_required in fields.items():
        if is_required and schema_name not in called.values():
            msg = f"the answers' schema needs '{schema_name}', which answers do not have: give it a"
            raise InvalidArgumentError(f"{msg} default, or choose another sink_format")
    return called


class SchemaReader:
    """Value reader that reads each value with its writer schema. Thread-safe.

    Args:
        names: The fields that are read.
        plain: Reads values without a header, where there is no registry.
        head_bytes: Number of bytes that identify the schema of nearly all values.
        path: Returns the path of a value's message in its schema, and the offset of its content.
        reader: Returns the reader for a schema id and message path; an InvalidArgumentError is
            cached, as schemas do not change.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        plain: RowReader | None,
        head_bytes: int,
        path: Callable[[bytes], tuple[MessagePath, int]],
        reader: Callable[[int, MessagePath], RowReader],
    ) -> None:
        self._names = names
        self._plain = plain
        self._head_bytes = head_bytes
        self._path = path
        self._reader = reader
        self._heads: dict[bytes, RowReader] = {}
        self._readers: dict[tuple[int, MessagePath], RowReader | HeadraceError] = {}

    def decode(self, records: Sequence[Record]) -> Fields:
        """Return the fields of records; see `ValueReader.decode`.

        Raises:
            UnavailableError: The registry is unavailable.
        """
        errors: dict[int, HeadraceError] = {}
        rows: list[Any] = []
        readers: list[RowReader] = []
        plain, heads, size = self._plain, self._heads, self._head_bytes
        start = 0 if plain else size
        for index, record in enumerate(records):
            value = record.value
            try:
                if value is None:
                    raise without_value()
                reader = plain or heads.get(value[:size])
                if reader is not None:
                    rows.append(reader.parse(value, start))
                else:
                    reader, offset = self._reader_of(value)
                    rows.append(reader.parse(value, offset))
                readers.append(reader)
            except (InvalidArgumentError, NotFoundError) as error:
                errors[index] = error
        return Fields(columns=self._columns(rows, readers), errors=errors)

    def _columns(self, rows: list[Any], readers: list[RowReader]) -> dict[str, Column]:
        by_reader: dict[int, list[int]] = {}
        if len(set(map(id, readers))) == 1:
            return readers[0].columns(rows)
        for index, reader in enumerate(readers):
            by_reader.setdefault(id(reader), []).append(index)
        merged: dict[str, list[object]] = {name: [None] * len(rows) for name in self._names}
        for indexes in by_reader.values():
            columns = readers[indexes[0]].columns([rows[index] for index in indexes])
            for name, column in columns.items():
                for index, value in zip(indexes, column, strict=True):
                    merged[name][index] = value
        return dict(merged)

    def _reader_of(self, value: bytes) -> tuple[RowReader, int]:
        """Return the reader of a value with a new header, and the offset of its content."""
        number = schema_id(value)
        path, offset = self._path(value)
        reader = self._readers.get((number, path))
        if reader is None:
            if len(self._readers) >= _MAX_READERS:
                self._readers.clear()
            try:
                reader = self._reader(number, path)
            except InvalidArgumentError as error:
                reader = InvalidArgumentError(f"schema {number} of the registry: {error}")
            self._readers[number, path] = reader
        if isinstance(reader, HeadraceError):
            raise reader.with_traceback(None)
        if offset == self._head_bytes:
            self._heads[value[:offset]] = reader
        return reader, offset


class SchemaWriter(Generic[S]):
    """Value writer of answers with one schema. Thread-safe.

    If the registry is unavailable at first, answers wait for it.

    Args:
        fixed_schema: A schema from a file, or a generated one; None for the subject's newest.
        text: Returns the schema as it is registered.
        newest: Returns the schema of a subject's version.
        writer: Returns the writer for a schema and its id; refuses a schema that answers do not
            fit.
    """

    def __init__(
        self,
        options: SchemaOptions,
        registry: SchemaRegistry | None,
        *,
        fixed_schema: S | None,
        text: Callable[[S], Schema],
        newest: Callable[[Registered], S],
        writer: Callable[[S, int], RowWriter],
    ) -> None:
        self._options = options
        self._registry = registry
        self._fixed_schema = fixed_schema
        self._text = text
        self._newest = newest
        self._make = writer
        self._lock = threading.Lock()
        self._writer: RowWriter | None = None
        if registry is not None and not options.subject:
            msg = "options.subject names the subject of the answers' schema, such as SINK-value"
            raise InvalidArgumentError(msg)
        if fixed_schema is not None:
            self._make(fixed_schema, 0)  # rejected at the start if answers do not fit it
        try:
            self._ready()
        except UnavailableError:
            if registry is None:
                raise

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """Return the values of answers; see `ValueWriter.encode`.

        Raises:
            UnavailableError: The registry is unavailable, or does not have the schema.
        """
        try:
            writer = self._writer or self._ready()
        except (FailedPreconditionError, InvalidArgumentError) as error:
            # Detected after the start, and caused by no record: records wait.
            raise UnavailableError(str(error)) from None
        return writer.write(columns, rows)

    def _ready(self) -> RowWriter:
        with self._lock:
            if self._writer is None:
                self._writer = self._make(*self._agreed())
            return self._writer

    def _agreed(self) -> tuple[S, int]:
        """Return the schema and its id."""
        registry, subject = self._registry, self._options.subject
        if registry is None:
            assert self._fixed_schema is not None
            return self._fixed_schema, 0
        try:
            if self._fixed_schema is None:
                version = registry.newest(subject)
                return self._newest(version), version.id
            ask = registry.register if self._options.register else registry.find
            return self._fixed_schema, ask(subject, self._text(self._fixed_schema))
        except NotFoundError as error:
            msg = f"{error}; register the answers' schema, or set options.register to true"
            raise FailedPreconditionError(msg) from None


def options_of(
    kind: str,
    settings: StreamFormatSpec,
    unused: frozenset[str],
    registry: SchemaRegistry | None,
) -> tuple[SchemaOptions, SchemaRegistry | None]:
    """Return the options of a format, and `registry` or else the registry in the options."""
    options = read_options(kind, settings.options, unused)
    if registry is None and options.registry:
        registry = SchemaRegistry(options)
    return options, registry
