"""Protobuf format with schemas from a registry or from a descriptor file.

With a registry, values begin as in Confluent's wire format: with the schema's id, and the message's
path in its file. Schemas are descriptors, from the registry or from a descriptor set, so no .proto
text is parsed here. Answers are written as a given message, or as one generated from the outputs.
"""

import base64
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from headrace.core import Datatype, InvalidArgumentError
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, FieldLayout, FieldSpec
from headrace.streaming.formats.options import (
    SchemaOptions,
    field_names,
    plain_values,
    read_file,
)
from headrace.streaming.formats.proto_rows import (
    COMPILE,
    ProtoFile,
    from_descriptor,
    from_descriptor_set,
    from_registry,
    message_class,
    message_reader,
)
from headrace.streaming.formats.registry import (
    HEAD_BYTES,
    Registered,
    Schema,
    SchemaRegistry,
    message_head,
    message_path,
)
from headrace.streaming.formats.schema_values import (
    MessagePath,
    RowReader,
    RowWriter,
    SchemaReader,
    SchemaWriter,
    names_in_schema,
    options_of,
)

_NATURAL: Final = {
    **dict.fromkeys((Datatype.INT8, Datatype.INT16, Datatype.INT32), FieldDescriptor.TYPE_INT32),
    **dict.fromkeys(
        (Datatype.UINT8, Datatype.UINT16, Datatype.UINT32), FieldDescriptor.TYPE_UINT32
    ),
    **dict.fromkeys((Datatype.FP16, Datatype.FP32), FieldDescriptor.TYPE_FLOAT),
    Datatype.INT64: FieldDescriptor.TYPE_INT64,
    Datatype.UINT64: FieldDescriptor.TYPE_UINT64,
    Datatype.FP64: FieldDescriptor.TYPE_DOUBLE,
    Datatype.BOOL: FieldDescriptor.TYPE_BOOL,
    Datatype.BYTES: FieldDescriptor.TYPE_STRING,
}
_INT32: Final = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
_INT64: Final = {FieldDescriptor.CPPTYPE_INT64}
_UINT32: Final = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_FLOAT: Final = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
_FITS: Final = {
    Datatype.BOOL: {FieldDescriptor.CPPTYPE_BOOL},
    Datatype.INT8: _INT32,
    Datatype.INT16: _INT32,
    Datatype.INT32: _INT32,
    Datatype.UINT8: _UINT32 | _INT32,
    Datatype.UINT16: _UINT32 | _INT32,
    Datatype.UINT32: _UINT32 | _INT64,
    Datatype.INT64: _INT64,
    Datatype.UINT64: {FieldDescriptor.CPPTYPE_UINT64},
    Datatype.FP16: _FLOAT,
    Datatype.FP32: _FLOAT,
    Datatype.FP64: {FieldDescriptor.CPPTYPE_DOUBLE},
    Datatype.BYTES: {FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_ENUM},
}


def make_schema(layout: FieldLayout, options: SchemaOptions) -> Any:  # noqa: ANN401  # protobuf ships no types
    """Return the descriptor of answers: a message, with repeated fields for vectors and matrices.

    Raises:
        InvalidArgumentError: The type of a passed field is unknown.
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


def message_writer(
    descriptor: Any,  # noqa: ANN401  # as above
    layout: FieldLayout,
    names: Mapping[str, str],
    head: bytes,
) -> RowWriter:
    """Return the writer of answers as messages of one type; each value begins with `head`.

    Raises:
        InvalidArgumentError: The type lacks a field for an output, has another type for it, or
            requires more than answers have.
    """
    fields = descriptor.fields_by_name
    required = {name: field.is_required for name, field in fields.items()}
    called = names_in_schema(layout, names, required)
    make = message_class(descriptor)
    values: dict[str, Callable[[Column, int], list[object]]] = {
        name: lambda column, _: list(column) for name in layout.answered
    }
    for spec in layout.outputs:
        field = fields[called[spec.name]]
        _check(spec, field)
        values[spec.name] = partial(_output_values, field)
    return RowWriter(
        kind="Protobuf message",
        head=head,
        called=called,
        values=values,
        encode=lambda row: make(**row).SerializeToString(),
    )


def _output_values(field: Any, column: Column, rows: int) -> list[object]:  # noqa: ANN401  # as above
    assert isinstance(column, np.ndarray)
    flat = column.reshape(rows, -1) if field.is_repeated else column
    is_text = field.type in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_ENUM}
    return plain_values(flat, rows, is_scalar=not field.is_repeated, is_text=is_text)


def _check(spec: FieldSpec, field: Any) -> None:  # noqa: ANN401  # as above
    """Raise for a field that cannot hold all values of an output."""
    shape = list(spec.shape)
    if field.is_repeated and shape.count(-1) > 1:
        msg = f"output '{spec.name}' has the shape {shape}, which a flat list does not tell"
        raise InvalidArgumentError(msg)
    if field.is_repeated != bool(shape) and not (not field.is_repeated and shape == [1]):
        description = "repeated" if field.is_repeated else "one value"
        msg = (
            f"output '{spec.name}' has the shape {shape}, but '{field.full_name}' is {description}"
        )
        raise InvalidArgumentError(msg)
    if field.message_type is not None or field.cpp_type not in _FITS[spec.datatype]:
        msg = f"output '{spec.name}' is {spec.datatype}, which '{field.full_name}' cannot hold"
        raise InvalidArgumentError(msg)


_AVRO_ONLY: Final = frozenset({"reader_schema_file"})
_FIRST_BYTES: Final = HEAD_BYTES + 1  # bytes before a value of a schema's first message


def make_reader(
    settings: StreamFormatSpec, layout: FieldLayout, registry: SchemaRegistry | None = None
) -> SchemaReader:
    """Return the Protobuf reader; `registry` replaces the one in the options in tests."""
    options, source = _options(settings, registry)
    files: dict[int, ProtoFile | InvalidArgumentError] = {}

    def file_of(number: int) -> ProtoFile:
        """Return the schema, read once: many paths may name messages that it lacks."""
        assert source is not None
        if number not in files:
            try:
                files[number] = from_registry(source, number)
            except InvalidArgumentError as error:
                files[number] = error
        file = files[number]
        if isinstance(file, InvalidArgumentError):
            raise file.with_traceback(None)
        return file

    def of_number(number: int, path: MessagePath) -> RowReader:
        if file_reader is not None:  # the descriptor file overrides the registry's schema
            return file_reader
        descriptor = file_of(number).at(path)
        if options.message and descriptor.full_name != options.message:
            msg = f"it is a {descriptor.full_name}, but options.message is {options.message}"
            raise InvalidArgumentError(msg)
        return message_reader(descriptor, layout.inputs, layout.passed)

    file_reader: RowReader | None = None
    file = _schema_file(options)
    if file is not None:
        descriptor = file.find(options.message)
        file_reader = message_reader(descriptor, layout.inputs, layout.passed)
    elif source is None:
        msg = "Protobuf is read with a schema: name options.registry, or options.descriptor_file"
        raise InvalidArgumentError(msg)
    return SchemaReader(
        [*(spec.name for spec in layout.inputs), *layout.passed],
        plain=file_reader if source is None else None,
        head_bytes=_FIRST_BYTES,
        path=message_path,
        reader=of_number,
    )


def make_writer(
    settings: StreamFormatSpec, layout: FieldLayout, registry: SchemaRegistry | None = None
) -> SchemaWriter[ProtoFile]:
    """Return the Protobuf writer; `registry` as in `make_reader`."""
    options, source = _options(settings, registry)
    fixed_schema = _schema_file(options)
    if fixed_schema is None and (source is None or options.register):
        fixed_schema = from_descriptor(make_schema(layout, options))

    def text(file: ProtoFile) -> Schema:
        encoded = base64.b64encode(file.file.SerializeToString()).decode()
        return Schema(text=encoded, schema_type="PROTOBUF")

    def newest(version: Registered) -> ProtoFile:
        assert source is not None
        return from_registry(source, version.id)

    def writer(file: ProtoFile, number: int) -> RowWriter:
        descriptor = file.find(options.message)
        path = file.path_of(descriptor)
        begin = b"" if source is None else message_head(number, path)
        return message_writer(descriptor, layout, options.names, begin)

    return SchemaWriter(
        options, source, fixed_schema=fixed_schema, text=text, newest=newest, writer=writer
    )


def _options(
    settings: StreamFormatSpec, registry: SchemaRegistry | None
) -> tuple[SchemaOptions, SchemaRegistry | None]:
    options, source = options_of("protobuf", settings, _AVRO_ONLY, registry)
    if options.schema_file:
        raise InvalidArgumentError(f"options.schema_file of the format protobuf: {COMPILE}")
    return options, source


def _schema_file(options: SchemaOptions) -> ProtoFile | None:
    path = options.descriptor_file
    if not path:
        return None
    try:
        return from_descriptor_set(read_file(path, "descriptor_file"), options.message)
    except InvalidArgumentError as error:
        msg = f"options: '{path}': {error}"
        raise InvalidArgumentError(msg) from None
