"""Reader and writer of values with a schema from a registry or a file: Avro and Protobuf.

With a registry, values begin as in Confluent's wire format (see `registry.py`). Each format
converts a schema to a reader and a writer of single values.
"""

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

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
from headrace.streaming.formats.options import SchemaOptions, field_names
from headrace.streaming.formats.registry import Schema, SchemaRegistry, schema_id
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
            msg = f"the answers' schema needs '{schema_name}', which answers do not have: make it"
            hint = "optional (in Avro, give it a default), or choose another sink_format"
            raise InvalidArgumentError(f"{msg} {hint}")
    return called


class SchemaFormat(Protocol[S]):
    """One format with schemas, for the options and the fields of one stream."""

    kind: str
    """Name of the format; in upper case, the registry's name of its schemas."""
    options: SchemaOptions
    layout: FieldLayout
    file_option: str
    """Option that names a file with a schema."""
    wire: str
    """Representation of schemas to request from a registry."""
    head_bytes: int
    """Number of bytes that identify the schema of nearly all values."""
    file_reads_all: bool
    """Whether a schema from a file reads the values of all schemas of a registry."""

    def from_file(self) -> S | None:
        """Return the schema of a file that the options name; None for no file."""

    def from_registry(self, text: str, others: Mapping[str, str]) -> S:
        """Return the schema of a text, which refers to `others` by name."""

    def generated(self) -> S:
        """Return a schema for answers, generated from their fields."""

    def text(self, schema: S) -> str:
        """Return the schema as it is registered."""

    def path(self, value: bytes) -> tuple[MessagePath, int]:
        """Return the path of a value's message in its schema, and the offset of its content."""

    def reader(self, schema: S, path: MessagePath | None) -> RowReader:
        """Return the reader of a schema's message; None for the one that the options name."""

    def writer(self, schema: S, number: int | None) -> RowWriter:
        """Return the writer with a schema and its id in the registry; None without a registry."""


class SchemaReader(Generic[S]):
    """Value reader that reads each value with its writer schema. Thread-safe.

    Args:
        registry: Replaces the one in the options in tests.
    """

    def __init__(self, form: SchemaFormat[S], registry: SchemaRegistry | None) -> None:
        self._form = form
        self._names = [*(spec.name for spec in form.layout.inputs), *form.layout.passed]
        self._registry = registry = registry or _registry_of(form.options)
        self._plain: RowReader | None = None
        self._readers: dict[bytes, RowReader | InvalidArgumentError] = {}
        self._schemas: dict[int, S | InvalidArgumentError] = {}
        schema = form.from_file() if registry is None or form.file_reads_all else None
        if schema is not None:
            self._plain = form.reader(schema, None)
        elif registry is None:
            msg = f"the format {form.kind} is read with a schema: name options.registry or"
            raise InvalidArgumentError(f"{msg} options.{form.file_option}")

    def decode(self, records: Sequence[Record]) -> Fields:
        """Return the fields of records; see `ValueReader.decode`.

        Raises:
            UnavailableError: The registry is unavailable.
        """
        errors: dict[int, HeadraceError] = {}
        rows: list[Any] = []
        readers: list[RowReader] = []
        plain = self._plain if self._registry is None else None
        by_head, size = self._readers, self._form.head_bytes
        for index, record in enumerate(records):
            value = record.value
            try:
                if value is None:
                    raise without_value()
                offset = 0 if plain else size
                reader = plain or by_head.get(value[:size])
                if reader is None:
                    reader, offset = self._reader_of(value)
                if isinstance(reader, HeadraceError):
                    raise reader.with_traceback(None)
                rows.append(reader.parse(value, offset))
                readers.append(reader)
            except (InvalidArgumentError, NotFoundError) as error:
                errors[index] = error
        if len(set(map(id, readers))) == 1:
            return Fields(columns=readers[0].columns(rows), errors=errors)
        columns = {
            name: [reader.getters[name](row) for reader, row in zip(readers, rows, strict=True)]
            for name in self._names
        }
        return Fields(columns=columns, errors=errors)

    def _reader_of(self, value: bytes) -> tuple[RowReader | InvalidArgumentError, int]:
        """Return the reader of a value with a new header, and the offset of its content."""
        number = schema_id(value)
        path, offset = self._form.path(value)
        reader = self._readers.get(value[:offset])
        if reader is None:
            if len(self._readers) >= _MAX_READERS:
                self._readers.clear()
            try:
                reader = self._plain or self._form.reader(self._schema(number), path)
            except InvalidArgumentError as error:  # remembered, as schemas do not change
                reader = InvalidArgumentError(f"schema {number} of the registry: {error}")
            self._readers[value[:offset]] = reader
        return reader, offset

    def _schema(self, number: int) -> S:
        """Return a schema, read once: many paths may name messages that it lacks."""
        schema = self._schemas.get(number)
        if schema is None:
            assert self._registry is not None
            if len(self._schemas) >= _MAX_READERS:
                self._schemas.clear()
            try:
                schema = _read_schema(self._form, self._registry, number)
            except InvalidArgumentError as error:
                schema = error
            self._schemas[number] = schema
        if isinstance(schema, InvalidArgumentError):
            raise schema.with_traceback(None)
        return schema


class SchemaWriter(Generic[S]):
    """Value writer of answers with one schema. Thread-safe.

    If the registry is unavailable at first, answers wait for it.

    Args:
        registry: As in `SchemaReader`.
    """

    def __init__(self, form: SchemaFormat[S], registry: SchemaRegistry | None) -> None:
        self._form = form
        self._registry = registry = registry or _registry_of(form.options)
        self._lock = threading.Lock()
        self._writer: RowWriter | None = None
        if registry is not None and not form.options.subject:
            msg = "options.subject names the subject of the answers' schema, such as SINK-value"
            raise InvalidArgumentError(msg)
        self._schema = form.from_file()
        """None for the subject's newest."""
        if self._schema is None and (registry is None or form.options.register):
            self._schema = form.generated()
        if self._schema is not None:
            form.writer(self._schema, None)  # rejected at the start if answers do not fit it
        with suppress(UnavailableError):
            self._ready()

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
                self._writer = self._form.writer(*self._agreed())
            return self._writer

    def _agreed(self) -> tuple[S, int | None]:
        """Return the schema, and its id in the registry."""
        form, registry, subject = self._form, self._registry, self._form.options.subject
        try:
            if registry is None:
                assert self._schema is not None
                return self._schema, None
            if self._schema is None:
                number = registry.newest(subject)
                return _read_schema(form, registry, number), number
            ask = registry.register if form.options.register else registry.find
            schema = Schema(text=form.text(self._schema), schema_type=form.kind.upper())
            return self._schema, ask(subject, schema)
        except NotFoundError as error:
            msg = f"{error}; register the answers' schema, or set options.register to true"
            raise FailedPreconditionError(msg) from None


def makers(
    make: Callable[[StreamFormatSpec, FieldLayout], SchemaFormat[S]],
) -> tuple[Callable[..., SchemaReader[S]], Callable[..., SchemaWriter[S]]]:
    """Return `make_reader` and `make_writer` of a format's module; tests replace the registry."""

    def make_reader(
        settings: StreamFormatSpec, layout: FieldLayout, registry: SchemaRegistry | None = None
    ) -> SchemaReader[S]:
        return SchemaReader(make(settings, layout), registry)

    def make_writer(
        settings: StreamFormatSpec, layout: FieldLayout, registry: SchemaRegistry | None = None
    ) -> SchemaWriter[S]:
        return SchemaWriter(make(settings, layout), registry)

    return make_reader, make_writer


def _read_schema(form: SchemaFormat[S], registry: SchemaRegistry, number: int) -> S:
    schema = registry.by_id(number, wire=form.wire)
    if schema.schema_type != form.kind.upper():
        msg = f"it is {schema.schema_type}, not {form.kind.upper()}"
        raise InvalidArgumentError(msg)
    others = registry.referenced(schema, wire=form.wire)
    return form.from_registry(schema.text, {name: other.text for name, other in others.items()})


def _registry_of(options: SchemaOptions) -> SchemaRegistry | None:
    return SchemaRegistry(options) if options.registry else None
