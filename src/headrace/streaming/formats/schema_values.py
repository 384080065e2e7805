"""Reader and writer of values with a schema from a registry or a file: Avro and Protobuf.

With a registry, values begin as in Confluent's wire format (see `registry.py`). Each format
converts a schema to a reader and a writer of single values.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, Fields, without_value
from headrace.streaming.formats.options import SchemaOptions, read_options
from headrace.streaming.formats.registry import Registered, Schema, SchemaRegistry, schema_id
from headrace.streaming.records import Record

_MAX_READERS: Final = 1024
MessagePath = tuple[int, ...]
S = TypeVar("S")


class RowsReader(Protocol):
    """Reads values of one schema."""

    def read(self, value: bytes, offset: int) -> Any:  # noqa: ANN401  # the input of `columns`
        """Return the row at an offset; raise InvalidArgumentError if it is invalid."""

    def columns(self, rows: Sequence[Any]) -> dict[str, Column]:
        """Return the requested fields of rows that `read` returned."""


class RowsWriter(Protocol):
    """Writes answers with one schema."""

    def write(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """Return a value for each row; raise InvalidArgumentError for an unfit one."""


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
        plain: RowsReader | None,
        head_bytes: int,
        path: Callable[[bytes], tuple[MessagePath, int]],
        reader: Callable[[int, MessagePath], RowsReader],
    ) -> None:
        self._names = names
        self._plain = plain
        self._head_bytes = head_bytes
        self._path = path
        self._reader = reader
        self._heads: dict[bytes, RowsReader] = {}
        self._readers: dict[tuple[int, MessagePath], RowsReader | HeadraceError] = {}

    def decode(self, records: Sequence[Record]) -> Fields:
        """Return the fields of records; see `ValueReader.decode`.

        Raises:
            UnavailableError: The registry is unavailable.
        """
        errors: dict[int, HeadraceError] = {}
        rows: list[Any] = []
        readers: list[RowsReader] = []
        plain, heads, size = self._plain, self._heads, self._head_bytes
        start = 0 if plain else size
        for index, record in enumerate(records):
            value = record.value
            try:
                if value is None:
                    raise without_value()
                reader = plain or heads.get(value[:size])
                if reader is not None:
                    rows.append(reader.read(value, start))
                else:
                    reader, offset = self._reader_of(value)
                    rows.append(reader.read(value, offset))
                readers.append(reader)
            except (InvalidArgumentError, NotFoundError) as error:
                errors[index] = error
        return Fields(columns=self._columns(rows, readers), errors=errors)

    def _columns(self, rows: list[Any], readers: list[RowsReader]) -> dict[str, Column]:
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

    def _reader_of(self, value: bytes) -> tuple[RowsReader, int]:
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
        writer: Callable[[S, int], RowsWriter],
    ) -> None:
        self._options = options
        self._registry = registry
        self._fixed_schema = fixed_schema
        self._text = text
        self._newest = newest
        self._make = writer
        self._lock = threading.Lock()
        self._writer: RowsWriter | None = None
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

    def _ready(self) -> RowsWriter:
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
