"""Protobuf: each record is a message, of a schema from a registry or from a file.

With a registry, values begin as Confluent's wire format says: with the schema's id, and where in
its file the message is. Schemas are descriptors, from the registry or from a descriptor set, so no
text of a .proto file is parsed here. Answers are written as a given message, or as one made from
the outputs.
"""

import base64
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import EncodeError

from headrace.core import (
    Datatype,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.spec_stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, Fields, FieldSpec, Layout, without_value
from headrace.streaming.formats.options import (
    SchemaOptions,
    field_names,
    plain_values,
    read_file,
    read_options,
)
from headrace.streaming.formats.proto_rows import (
    COMPILE,
    MessageReader,
    ProtoFile,
    from_descriptor,
    from_descriptor_set,
    from_registry,
    message_class,
)
from headrace.streaming.formats.registry import (
    HEAD_BYTES,
    Schema,
    SchemaRegistry,
    message_head,
    message_path,
    schema_id,
)
from headrace.streaming.records import Record

_NATURAL: Final = {
    Datatype.BOOL: FieldDescriptor.TYPE_BOOL,
    Datatype.INT8: FieldDescriptor.TYPE_INT32,
    Datatype.INT16: FieldDescriptor.TYPE_INT32,
    Datatype.INT32: FieldDescriptor.TYPE_INT32,
    Datatype.UINT8: FieldDescriptor.TYPE_UINT32,
    Datatype.UINT16: FieldDescriptor.TYPE_UINT32,
    Datatype.UINT32: FieldDescriptor.TYPE_UINT32,
    Datatype.INT64: FieldDescriptor.TYPE_INT64,
    Datatype.UINT64: FieldDescriptor.TYPE_UINT64,
    Datatype.FP16: FieldDescriptor.TYPE_FLOAT,
    Datatype.FP32: FieldDescriptor.TYPE_FLOAT,
    Datatype.FP64: FieldDescriptor.TYPE_DOUBLE,
    Datatype.BYTES: FieldDescriptor.TYPE_STRING,
}
_INT32: Final = frozenset({FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64})
_INT64: Final = frozenset({FieldDescriptor.CPPTYPE_INT64})
_UINT32: Final = frozenset({FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64})
_FLOAT: Final = frozenset({FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE})
_FITS: Final = {
    Datatype.BOOL: frozenset({FieldDescriptor.CPPTYPE_BOOL}),
    Datatype.INT8: _INT32,
    Datatype.INT16: _INT32,
    Datatype.INT32: _INT32,
    Datatype.UINT8: _UINT32 | _INT32,
    Datatype.UINT16: _UINT32 | _INT32,
    Datatype.UINT32: _UINT32 | _INT64,
    Datatype.INT64: _INT64,
    Datatype.UINT64: frozenset({FieldDescriptor.CPPTYPE_UINT64}),
    Datatype.FP16: _FLOAT,
    Datatype.FP32: _FLOAT,
    Datatype.FP64: frozenset({FieldDescriptor.CPPTYPE_DOUBLE}),
    Datatype.BYTES: frozenset({FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_ENUM}),
}


def made_schema(layout: Layout, options: SchemaOptions) -> Any:  # noqa: ANN401  # protobuf ships no types
    """The descriptor of answers: a message, with repeated fields for vectors and matrices.

    Raises:
        InvalidArgumentError: What type a field has that is passed on is not known.
    """
    called = field_names(layout, options.names)
    file = FileDescriptorProto(name="answer.proto", package="headrace", syntax="proto3")
    message = file.message_type.add(name="Answer")
    for number, name in enumerate(layout.answered, start=1):
        kind = options.types.get(name)
        if kind is None:
            msg = f"what type '{name}' has in the answers is not known: name it in options.types"
            raise InvalidArgumentError(f"{msg}, or give the answers' schema")
        message.field.add(
            name=called[name],
            number=number,
            label=FieldDescriptor.LABEL_OPTIONAL,
            type=_NATURAL[kind],
            proto3_optional=True,
            oneof_index=len(message.oneof_decl),
        )
        message.oneof_decl.add(name=f"_{called[name]}")
    for spec in layout.outputs:
        message.field.add(
            name=called[spec.name],
            number=len(message.field) + 1,
            label=FieldDescriptor.LABEL_REPEATED if spec.shape else FieldDescriptor.LABEL_OPTIONAL,
            type=_NATURAL[spec.datatype],
        )
    return file


class MessageWriter:
    """Writes answers as messages of one type.

    Args:
        head: What each value begins with.

    Raises:
        InvalidArgumentError: The type has no place for an output, or needs more than answers have.
    """

    def __init__(
        self,
        descriptor: Any,  # noqa: ANN401  # as above
        layout: Layout,
        names: Mapping[str, str],
        head: bytes,
    ) -> None:
        self._make = message_class(descriptor)
        self._head = head
        self._called = field_names(layout, names)
        fields = descriptor.fields_by_name
        for name, called in self._called.items():
            if called not in fields:
                there = ", ".join(list(fields)[:20])
                msg = f"answers have '{name}', but {descriptor.full_name} has no '{called}', only:"
                hint = "see options.names, or choose another sink_format"
                raise InvalidArgumentError(f"{msg} {there}; {hint}")
        for name, field in fields.items():
            if field.is_required and name not in self._called.values():
                msg = f"{descriptor.full_name} requires '{name}', which answers do not have"
                raise InvalidArgumentError(msg)
        self._outputs = {
            spec.name: (spec, fields[self._called[spec.name]]) for spec in layout.outputs
        }
        for spec, field in self._outputs.values():
            _check(spec, field)

    def write(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """A value for each row.

        Raises:
            InvalidArgumentError: One is not as the message says.
        """
        names = list(self._called)
        called = list(self._called.values())
        lists = [self._values(name, columns[name], rows) for name in names]
        make, head = self._make, self._head
        try:
            return [
                head + make(**dict(zip(called, values, strict=True))).SerializeToString()
                for values in (zip(*lists, strict=True) if lists else [()] * rows)
            ]
        except (TypeError, ValueError, OverflowError, EncodeError) as error:
            msg = f"the answer is not as its Protobuf message says: {error}"
            raise InvalidArgumentError(msg[:400]) from None

    def _values(self, name: str, column: Column, rows: int) -> list[object]:
        if name not in self._outputs:
            return list(column)
        _, field = self._outputs[name]
        assert isinstance(column, np.ndarray)
        flat = column.reshape(rows, -1) if field.is_repeated else column
        is_text = field.type in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_ENUM}
        return plain_values(flat, rows, is_scalar=not field.is_repeated, is_text=is_text)


def _check(spec: FieldSpec, field: Any) -> None:  # noqa: ANN401  # as above
    """Refuse a field that has no room for all values of an output."""
    shape = list(spec.shape)
    if field.is_repeated and shape.count(-1) > 1:
        msg = f"output '{spec.name}' has the shape {shape}, which a flat list does not tell"
        raise InvalidArgumentError(msg)
    if field.is_repeated != bool(shape) and not (not field.is_repeated and shape == [1]):
        what = "repeated" if field.is_repeated else "one value"
        msg = f"output '{spec.name}' has the shape {shape}, but '{field.full_name}' is {what}"
        raise InvalidArgumentError(msg)
    if field.message_type is not None or field.cpp_type not in _FITS[spec.datatype]:
        msg = f"output '{spec.name}' is {spec.datatype}, which '{field.full_name}' cannot hold"
        raise InvalidArgumentError(msg)


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
        """As `ValueReader.decode`.

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
        """As `ValueWriter.encode`.

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


def make_reader(
    settings: StreamFormatSpec, layout: Layout, registry: SchemaRegistry | None = None
) -> ProtobufReader:
    """What reads Protobuf; `registry` is the one that options name unless a test says else."""
    options = _options(settings)
    if registry is None and options.registry:
        registry = SchemaRegistry(options)
    return ProtobufReader(options, layout, registry)


def make_writer(
    settings: StreamFormatSpec, layout: Layout, registry: SchemaRegistry | None = None
) -> ProtobufWriter:
    """What writes Protobuf; `registry` as of `make_reader`."""
    options = _options(settings)
    if registry is None and options.registry:
        registry = SchemaRegistry(options)
    return ProtobufWriter(options, layout, registry)


def _options(settings: StreamFormatSpec) -> SchemaOptions:
    options = read_options("protobuf", settings.options, _AVRO_ONLY)
    if options.schema_file:
        raise InvalidArgumentError(f"options.schema_file of the format protobuf: {COMPILE}")
    return options


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
