"""Protobuf: each record a message, of a schema from a registry or from a file.

With a registry, values begin as Confluent's wire format says: with the schema's id, and where in
its file the message is. The registry is asked for a descriptor; schemas of files are descriptor
sets, too, so no text of a .proto file is parsed here.
"""

import base64
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.spec_stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, Fields, Layout, without_value
from headrace.streaming.formats.framing import HEAD_BYTES, message_head, message_path, schema_id
from headrace.streaming.formats.options import SchemaOptions, read_file, read_options
from headrace.streaming.formats.proto_answers import MessageWriter, made_schema
from headrace.streaming.formats.proto_descriptors import (
    COMPILE,
    ProtoFile,
    from_descriptor,
    from_descriptor_set,
    from_registry,
)
from headrace.streaming.formats.proto_rows import MessageReader
from headrace.streaming.formats.registry import Schema, SchemaRegistry
from headrace.streaming.records import Record

_AVRO_ONLY: Final = frozenset({"reader_schema_file"})
_MAX_READERS: Final = 1024
_FIRST_BYTES: Final = HEAD_BYTES + 1  # those before a schema's first message


class ProtobufReader:
    """Reads Protobuf. Thread-safe."""

    def __init__(
        self, options: SchemaOptions, layout: Layout, registry: SchemaRegistry | None
    ) -> None:
        self._inputs = layout.inputs
        self._passed = layout.passed
        self._message = options.message
        self._registry = registry
        self._files: dict[int, ProtoFile | HeadraceError] = {}
        self._readers: dict[tuple[int, tuple[int, ...]], MessageReader | HeadraceError] = {}
        self._firsts: dict[bytes, MessageReader] = {}
        self._given: MessageReader | None = None
        file = _given_file(options)
        if file is not None:
            self._given = self._reader(_descriptor(file, options.message))
        elif registry is None:
            msg = (
                "Protobuf is read with a schema: name options.registry, or options.descriptor_file"
            )
            raise InvalidArgumentError(msg)

    def decode(self, records: Sequence[Record]) -> Fields:
        """As `Format.decode`.

        Raises:
            UnavailableError: The registry does not tell a schema now.
        """
        errors: dict[int, HeadraceError] = {}
        found: dict[int, tuple[MessageReader, list[int], list[Any]]] = {}
        count = 0
        for place, record in enumerate(records):
            value = record.value
            try:
                if value is None:
                    raise without_value()
                reader, at = self._reader_of(value)
                message = reader.read(value[at:] if at else value)
            except (InvalidArgumentError, NotFoundError) as error:
                errors[place] = error
                continue
            _, places, messages = found.setdefault(id(reader), (reader, [], []))
            places.append(count)
            messages.append(message)
            count += 1
        if len(found) == 1:
            reader, _, messages = next(iter(found.values()))
            return Fields(columns=reader.columns(messages), errors=errors)
        names = (*(spec.name for spec in self._inputs), *self._passed)
        merged: dict[str, list[Any]] = {name: [None] * count for name in names}
        for reader, places, messages in found.values():
            for name, column in reader.columns(messages).items():
                for at, value in zip(places, column, strict=True):
                    merged[name][at] = value
        return Fields(columns=dict(merged), errors=errors)

    def _reader_of(self, value: bytes) -> tuple[MessageReader, int]:
        """The reader of a value, and where its message begins."""
        if self._registry is None:
            assert self._given is not None
            return self._given, 0
        known = self._firsts.get(value[:_FIRST_BYTES])
        if known is not None:
            return known, _FIRST_BYTES
        number = schema_id(value)
        path, at = message_path(value)
        if self._given is not None:  # the file says how; that is what it was given for
            return self._given, at
        found = self._readers.get((number, path))
        if found is None:
            found = self._new_reader(number, path)
            if len(self._readers) >= _MAX_READERS:
                self._readers.clear()
            self._readers[number, path] = found
        if isinstance(found, HeadraceError):
            raise found.with_traceback(None)
        if at == _FIRST_BYTES:
            self._firsts[value[:at]] = found
        return found, at

    def _new_reader(self, number: int, path: tuple[int, ...]) -> MessageReader | HeadraceError:
        """Of a message in a schema, or why it cannot be read, which stays so."""
        file = self._file(number)
        if isinstance(file, HeadraceError):
            return file
        try:
            descriptor = file.at(path)
            if self._message and descriptor.full_name != self._message:
                msg = f"it is a {descriptor.full_name}, but options.message is {self._message}"
                raise InvalidArgumentError(msg)  # noqa: TRY301  # as those of `at` and `_reader`
            return self._reader(descriptor)
        except InvalidArgumentError as error:
            return InvalidArgumentError(f"schema {number} of the registry: {error}")

    def _file(self, number: int) -> ProtoFile | HeadraceError:
        assert self._registry is not None
        found = self._files.get(number)
        if found is None:
            try:
                found = from_registry(self._registry, number)
            except InvalidArgumentError as error:
                found = InvalidArgumentError(f"schema {number} of the registry: {error}")
            self._files[number] = found
        return found

    def _reader(self, descriptor: Any) -> MessageReader:  # noqa: ANN401  # protobuf ships no types
        return MessageReader(descriptor, self._inputs, self._passed)


class ProtobufWriter:
    """Writes Protobuf. Thread-safe.

    If the registry is away at first, answers wait for it.
    """

    def __init__(
        self, options: SchemaOptions, layout: Layout, registry: SchemaRegistry | None
    ) -> None:
        self._options = options
        self._layout = layout
        self._registry = registry
        self._lock = threading.Lock()
        self._writer: MessageWriter | None = None
        if registry is not None and not options.subject:
            msg = "options.subject names the subject of the answers' schema, such as SINK-value"
            raise InvalidArgumentError(msg)
        self._given = _given_file(options)  # None: the subject's newest
        if self._given is None and (registry is None or options.register):
            self._given = from_descriptor(made_schema(layout, options))
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

    def _ready(self) -> MessageWriter:
        with self._lock:
            if self._writer is None:
                self._writer = self._make(*self._agreed())
            return self._writer

    def _agreed(self) -> tuple[ProtoFile, int]:
        """The schema and its id."""
        registry, subject = self._registry, self._options.subject
        if registry is None:
            assert self._given is not None
            return self._given, 0
        try:
            if self._given is None:
                newest = registry.newest(subject)
                return from_registry(registry, newest.id), newest.id
            text = base64.b64encode(self._given.file.SerializeToString()).decode()
            schema = Schema(text=text, schema_type="PROTOBUF")
            if self._options.register:
                return self._given, registry.register(subject, schema)
            return self._given, registry.find(subject, schema)
        except NotFoundError as error:
            msg = f"{error}; register the answers' schema, or set options.register to true"
            raise FailedPreconditionError(msg) from None

    def _make(self, file: ProtoFile, number: int) -> MessageWriter:
        descriptor = _descriptor(file, self._options.message)
        path = file.path_of(descriptor.full_name)
        begin = b"" if self._registry is None else message_head(number, path)
        return MessageWriter(descriptor, self._layout, self._options.names, begin)


class ProtobufFormat:
    """The format `protobuf`: one of both ways, as the layout says."""

    def __init__(
        self, options: SchemaOptions, layout: Layout, registry: SchemaRegistry | None
    ) -> None:
        writes = bool(layout.outputs or layout.answered)
        self._writer = ProtobufWriter(options, layout, registry) if writes else None
        self._reader = None if writes else ProtobufReader(options, layout, registry)

    def decode(self, records: Sequence[Record]) -> Fields:
        """As `Format.decode`."""
        assert self._reader is not None
        return self._reader.decode(records)

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """As `Format.encode`."""
        assert self._writer is not None
        return self._writer.encode(columns, rows)


def make_format(
    settings: StreamFormatSpec, layout: Layout, registry: SchemaRegistry | None = None
) -> ProtobufFormat:
    """The format `protobuf`; `registry` is the one that options name unless a test says else."""
    options = read_options("protobuf", settings.options, _AVRO_ONLY)
    if options.schema_file:
        raise InvalidArgumentError(f"options.schema_file of the format protobuf: {COMPILE}")
    if registry is None and options.registry:
        registry = SchemaRegistry(options)
    return ProtobufFormat(options, layout, registry)


def _given_file(options: SchemaOptions) -> ProtoFile | None:
    path = options.descriptor_file
    if not path:
        return None
    try:
        return from_descriptor_set(read_file(path, "descriptor_file"), options.message)
    except InvalidArgumentError as error:
        msg = f"options: '{path}': {error}"
        raise InvalidArgumentError(msg) from None


def _descriptor(file: ProtoFile, message: str) -> Any:  # noqa: ANN401  # as above
    names = file.names()
    if not message and len(names) != 1:
        msg = "name options.message; the schema has: " + (", ".join(names[:20]) or "no messages")
        raise InvalidArgumentError(msg)
    return file.at(file.path_of(message or names[0]))
