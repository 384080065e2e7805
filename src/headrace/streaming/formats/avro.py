"""Avro: each record one of a schema, from a registry or from a file.

With a registry, values begin as Confluent's wire format says; without one they are nothing but the
record's bytes. A record is read with the schema that it was written with, and its fields are found
by their names, so that schemas may change as long as these stay.
"""

import threading
from collections.abc import Mapping, Sequence

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.spec_stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, Fields, Layout, without_value
from headrace.streaming.formats.avro_answers import RowWriter, made_schema
from headrace.streaming.formats.avro_rows import Row, RowReader
from headrace.streaming.formats.avro_schemas import AvroSchema, read_schema
from headrace.streaming.formats.framing import HEAD_BYTES, head, schema_id
from headrace.streaming.formats.options import SchemaOptions, read_file, read_options
from headrace.streaming.formats.registry import Schema, SchemaRegistry
from headrace.streaming.records import Record

_PROTOBUF_ONLY = frozenset({"descriptor_file", "message"})


class AvroReader:
    """Reads Avro. Thread-safe."""

    def __init__(
        self, options: SchemaOptions, layout: Layout, registry: SchemaRegistry | None
    ) -> None:
        self._inputs = [spec.name for spec in layout.inputs]
        self._passed = list(layout.passed)
        self._registry = registry
        self._target = None
        if options.reader_schema_file:
            self._target = _from_file(options.reader_schema_file, "reader_schema_file")
        self._heads: dict[bytes, RowReader] = {}
        self._unreadable: dict[int, HeadraceError] = {}
        self._plain: RowReader | None = None
        if registry is None:
            if not options.schema_file:
                msg = "Avro is read with a schema: name options.registry or options.schema_file"
                raise InvalidArgumentError(msg)
            self._plain = self._reader(_from_file(options.schema_file, "schema_file"))
        elif self._target is not None:
            self._reader(self._target)  # refused now if it has not got the fields

    def decode(self, records: Sequence[Record]) -> Fields:
        """As `Format.decode`.

        Raises:
            UnavailableError: The registry does not tell a schema now.
        """
        errors: dict[int, HeadraceError] = {}
        rows: list[Row] = []
        readers: list[RowReader] = []
        plain, heads = self._plain, self._heads
        for place, record in enumerate(records):
            value = record.value
            try:
                if value is None:
                    raise without_value()
                reader = plain or heads.get(value[:HEAD_BYTES]) or self._reader_of(value)
                rows.append(reader.read(value, 0 if plain else HEAD_BYTES))
                readers.append(reader)
            except (InvalidArgumentError, NotFoundError) as error:
                errors[place] = error
        return Fields(columns=self._columns(rows, readers), errors=errors)

    def _columns(self, rows: list[Row], readers: list[RowReader]) -> dict[str, Column]:
        if not rows:
            return {name: [] for name in (*self._inputs, *self._passed)}
        if len(set(map(id, readers))) == 1:
            return readers[0].columns(rows)
        merged: dict[str, list[object]] = {
            name: [None] * len(rows) for name in (*self._inputs, *self._passed)
        }
        by_reader: dict[int, list[int]] = {}
        for at, reader in enumerate(readers):
            by_reader.setdefault(id(reader), []).append(at)
        for places in by_reader.values():
            found = readers[places[0]].columns([rows[at] for at in places])
            for name, column in found.items():
                for at, value in zip(places, column, strict=True):
                    merged[name][at] = value
        return dict(merged)

    def _reader_of(self, value: bytes) -> RowReader:
        """The reader of a value's schema, which was not met before or cannot be read."""
        assert self._registry is not None
        number = schema_id(value)
        if number in self._unreadable:
            raise self._unreadable[number].with_traceback(None)
        schema = self._registry.by_id(number)
        try:
            reader = self._reader(_from_registry(self._registry, schema))
        except InvalidArgumentError as error:  # schemas do not change, so it stays so
            told = InvalidArgumentError(f"schema {number} of the registry: {error}")
            self._unreadable[number] = told
            raise told from None
        self._heads[value[:HEAD_BYTES]] = reader
        return reader

    def _reader(self, schema: AvroSchema) -> RowReader:
        return RowReader(schema, self._target, inputs=self._inputs, passed=self._passed)


class AvroWriter:
    """Writes Avro. Thread-safe.

    If the registry is away at first, answers wait for it.
    """

    def __init__(
        self, options: SchemaOptions, layout: Layout, registry: SchemaRegistry | None
    ) -> None:
        self._options = options
        self._layout = layout
        self._registry = registry
        self._lock = threading.Lock()
        self._writer: RowWriter | None = None
        if registry is not None and not options.subject:
            msg = "options.subject names the subject of the answers' schema, such as SINK-value"
            raise InvalidArgumentError(msg)
        self._given = self._given_schema()
        if self._given is not None:
            self._make(self._given, 0)  # refused now if answers do not fit it
        try:
            self._ready()
        except UnavailableError:
            if registry is None:
                raise

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """As `Format.encode`.

        Raises:
            UnavailableError: The registry was not there yet, or does not have the schema.
        """
        try:
            writer = self._writer or self._ready()
        except (FailedPreconditionError, InvalidArgumentError) as error:
            # Known too late to be refused at the start; no answer is to blame.
            raise UnavailableError(str(error)) from None
        return writer.write(columns, rows)

    def _ready(self) -> RowWriter:
        with self._lock:
            if self._writer is None:
                self._writer = self._make(*self._agreed())
            return self._writer

    def _given_schema(self) -> AvroSchema | None:
        """The schema that needs no registry: from the file, or made. None: the subject's newest."""
        options = self._options
        if options.schema_file:
            return _from_file(options.schema_file, "schema_file")
        if self._registry is None or options.register:
            return read_schema(made_schema(self._layout, options))
        return None

    def _agreed(self) -> tuple[AvroSchema, int]:
        """The schema and its id."""
        registry, subject = self._registry, self._options.subject
        if registry is None:
            assert self._given is not None
            return self._given, 0
        try:
            if self._given is None:
                newest = registry.newest(subject)
                return _from_registry(registry, newest), newest.id
            schema = Schema(text=self._given.text)
            if self._options.register:
                return self._given, registry.register(subject, schema)
            return self._given, registry.find(subject, schema)
        except NotFoundError as error:
            msg = f"{error}; register the answers' schema, or set options.register to true"
            raise FailedPreconditionError(msg) from None

    def _make(self, schema: AvroSchema, number: int) -> RowWriter:
        begin = b"" if self._registry is None else head(number)
        return RowWriter(schema, self._layout, self._options.names, begin)


def _from_file(path: str, what: str) -> AvroSchema:
    try:
        return read_schema(read_file(path, what).decode())
    except (InvalidArgumentError, UnicodeDecodeError) as error:
        msg = f"options.{what}: '{path}': {error}"
        raise InvalidArgumentError(msg) from None


def _from_registry(registry: SchemaRegistry, schema: Schema) -> AvroSchema:
    if schema.schema_type != "AVRO":
        msg = f"it is {schema.schema_type}, not AVRO"
        raise InvalidArgumentError(msg)
    others = registry.referenced(schema)
    return read_schema(schema.text, {name: other.text for name, other in others.items()})


def make_format(
    settings: StreamFormatSpec, layout: Layout, registry: SchemaRegistry | None = None
) -> "AvroFormat":
    """The format `avro`; `registry` is the one that the options name unless a test says else."""
    options = read_options("avro", settings.options, _PROTOBUF_ONLY)
    if registry is None and options.registry:
        registry = SchemaRegistry(options)
    return AvroFormat(options, layout, registry)


class AvroFormat:
    """The format `avro`: one of both ways, as the layout says."""

    def __init__(
        self, options: SchemaOptions, layout: Layout, registry: SchemaRegistry | None
    ) -> None:
        writes = bool(layout.outputs or layout.answered)
        self._writer = AvroWriter(options, layout, registry) if writes else None
        self._reader = None if writes else AvroReader(options, layout, registry)

    def decode(self, records: Sequence[Record]) -> Fields:
        """As `Format.decode`."""
        assert self._reader is not None
        return self._reader.decode(records)

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """As `Format.encode`."""
        assert self._writer is not None
        return self._writer.encode(columns, rows)
