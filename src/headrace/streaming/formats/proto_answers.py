"""Columns to Protobuf values: by a message that is given, or one that is made from the outputs."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import EncodeError

from headrace.core import Datatype, InvalidArgumentError
from headrace.streaming.formats import Column, FieldSpec, Layout
from headrace.streaming.formats.answered import field_names, plain_values
from headrace.streaming.formats.options import SchemaOptions
from headrace.streaming.formats.proto_descriptors import message_class

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
