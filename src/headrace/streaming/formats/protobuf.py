"""Protobuf format with schemas from a registry or from a descriptor file.

With a registry, values begin as in Confluent's wire format: with the schema's id, and the message's
path in its file. Schemas are descriptors, from the registry or from a descriptor set, so no .proto
text is parsed here. Answers are written as a given message, or as one generated from the outputs.
"""

import base64
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from headrace.core import Datatype, InvalidArgumentError
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, FieldLayout, FieldSpec
from headrace.streaming.formats.options import (
    field_names,
    from_file,
    plain_values,
    read_options,
)
from headrace.streaming.formats.proto_rows import (
    COMPILE,
    ProtoFile,
    from_descriptor,
    from_descriptor_set,
    from_registry,
    message_reader,
)
from headrace.streaming.formats.registry import (
    HEAD_BYTES,
    message_head,
    message_path,
)
from headrace.streaming.formats.schema_values import (
    MessagePath,
    RowReader,
    RowWriter,
    makers,
    names_in_schema,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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


def _output_values(field: Any, column: Column, rows: int) -> list[object]:  # noqa: ANN401  # protobuf ships no types
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


class ProtobufFormat:
    """The format `protobuf` for one stream; see `SchemaFormat`."""

    kind = "protobuf"
    file_option = "descriptor_file"
    wire = "serialized"  # a descriptor in base64, not .proto text
    head_bytes = HEAD_BYTES + 1  # of a schema's first message
    file_reads_all = True

    def __init__(self, settings: StreamFormatSpec, layout: FieldLayout) -> None:
        unused = frozenset({"reader_schema_file"})
        self.options = read_options(self.kind, settings.options, unused)
        self.layout = layout
        if self.options.schema_file:
            raise InvalidArgumentError(f"options.schema_file of the format protobuf: {COMPILE}")

    def from_file(self) -> ProtoFile | None:
        """Return the file of `descriptor_file` that has the message."""
        path = self.options.descriptor_file
        read = partial(from_descriptor_set, message=self.options.message)
        return from_file(path, "descriptor_file", read) if path else None

    from_registry = staticmethod(from_registry)

    def generated(self) -> ProtoFile:
        """Return a message of answers, with repeated fields for vectors and matrices.

        Raises:
            InvalidArgumentError: The type of a passed field is unknown.
        """
        called = field_names(self.layout, self.options.names)
        file = FileDescriptorProto(name="answer.proto", package="headrace", syntax="proto3")
        message = file.message_type.add(name="Answer")
        for number, name in enumerate(self.layout.answered, start=1):
            kind = self.options.types.get(name)
            if kind is None:
                msg = f"what type '{name}' has in the answers is not known: name it in"
                raise InvalidArgumentError(f"{msg} options.types, or give the answers' schema")
            message.field.add(
                name=called[name],
                number=number,
                label=FieldDescriptor.LABEL_OPTIONAL,
                type=_NATURAL[kind],
                proto3_optional=True,
                oneof_index=len(message.oneof_decl),
            )
            message.oneof_decl.add(name=f"_{called[name]}")
        for spec in self.layout.outputs:
            is_list = bool(spec.shape)
            message.field.add(
                name=called[spec.name],
                number=len(message.field) + 1,
                label=FieldDescriptor.LABEL_REPEATED if is_list else FieldDescriptor.LABEL_OPTIONAL,
                type=_NATURAL[spec.datatype],
            )
        return from_descriptor(file)

    def text(self, schema: ProtoFile) -> str:
        """Return the descriptor in base64."""
        return base64.b64encode(schema.file.SerializeToString()).decode()

    path = staticmethod(message_path)

    def reader(self, schema: ProtoFile, path: MessagePath | None) -> RowReader:
        """Return the reader of a file's message."""
        full_name = self.options.message
        descriptor = schema.find(full_name) if path is None else schema.at(path)
        if full_name and descriptor.full_name != full_name:
            msg = f"it is a {descriptor.full_name}, but options.message is {full_name}"
            raise InvalidArgumentError(msg)
        return message_reader(descriptor, self.layout.inputs, self.layout.passed)

    def writer(self, schema: ProtoFile, number: int | None) -> RowWriter:
        """Return the writer of a file's message.

        Raises:
            InvalidArgumentError: The message lacks a field for an output, has another type for it,
                or requires more than answers have.
        """
        descriptor = schema.find(self.options.message)
        fields = descriptor.fields_by_name
        required = {name: field.is_required for name, field in fields.items()}
        called = names_in_schema(self.layout, self.options.names, required)
        values: dict[str, Callable[[Column, int], list[object]]] = {
            name: lambda column, _: list(column) for name in self.layout.answered
        }
        for spec in self.layout.outputs:
            field = fields[called[spec.name]]
            _check(spec, field)
            values[spec.name] = partial(_output_values, field)
        make = GetMessageClass(descriptor)
        return RowWriter(
            kind="Protobuf message",
            head=b"" if number is None else message_head(number, schema.path_of(descriptor)),
            called=called,
            values=values,
            encode=lambda row: make(**row).SerializeToString(),
        )


make_reader, make_writer = makers(ProtobufFormat)
