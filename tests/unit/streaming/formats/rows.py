"""Records, layouts and formats for the tests of formats."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import fastavro
import numpy as np
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from headrace.core import Array, Datatype
from headrace.core.spec.stream_parts import FormatKind, StreamFormatSpec
from headrace.streaming.formats import FieldLayout, FieldSpec, avro, json_objects, protobuf
from headrace.streaming.formats.options import SchemaOptions
from headrace.streaming.formats.registry import SchemaRegistry
from headrace.streaming.records import Record, TopicPartition
from tests.schema_registries import Registry

MODULES = {
    FormatKind.AVRO: avro,
    FormatKind.JSON: json_objects,
    FormatKind.PROTOBUF: protobuf,
}


def record(value: bytes | None) -> Record:
    return Record(topic_partition=TopicPartition("in", 0), offset=0, key=b"k", value=value)


def spec(name: str, datatype: Datatype = Datatype.FP32, *shape: int) -> FieldSpec:
    return FieldSpec(name=name, datatype=datatype, shape=shape)


def reads(*inputs: FieldSpec, passed: Sequence[str] = ()) -> FieldLayout:
    return FieldLayout(inputs=inputs, outputs=(), passed=tuple(passed))


def writes(*outputs: FieldSpec, answered: Sequence[str] = ()) -> FieldLayout:
    return FieldLayout(inputs=(), outputs=outputs, answered=tuple(answered))


def client(registry: Registry, **more: Any) -> SchemaRegistry:  # noqa: ANN401  # as its own
    options = more.pop("options", {})
    return SchemaRegistry(
        SchemaOptions(**{"registry": "http://registry:8081", **options}),
        transport=registry.transport(),
        **{"pause": lambda _: None, "chance": lambda: 0.0, **more},
    )


def avro_bytes(schema: object, row: Mapping[str, Any], head: bytes = b"") -> bytes:
    """A value as another producer writes it."""
    buffer = io.BytesIO()
    buffer.write(head)
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), row)  # type: ignore[arg-type]  # as JSON has it
    return buffer.getvalue()


def array(values: object, datatype: Datatype) -> Array:
    return np.array(values, datatype.dtype)


def avro_record(*fields: tuple[str, Any], name: str = "R") -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": one, "type": kind} for one, kind in fields],
    }


def proto(
    package: str = "",
    /,
    *,
    name: str = "schema.proto",
    syntax: str = "proto3",
    imports: Sequence[str] = (),
    **messages: Sequence[str],
) -> Any:  # noqa: ANN401  # protobuf ships no types
    """The descriptor of a .proto file whose messages have such fields as `repeated float x = 7`."""
    file = FileDescriptorProto(name=name, package=package, syntax=syntax, dependency=imports)
    for called, fields in messages.items():
        add_fields(file.message_type.add(name=called), fields)
    return file


def add_fields(message: Any, fields: Sequence[str]) -> None:  # noqa: ANN401  # as above
    for line in fields:
        words, _, number = line.partition(" = ")
        *label, kind, name = words.split()
        field = message.field.add(
            name=name,
            number=int(number or len(message.field) + 1),
            label=f"LABEL_{(label or ['optional'])[0].upper()}",
        )
        if f"TYPE_{kind.upper()}" in FieldDescriptorProto.Type.keys():  # noqa: SIM118  # no mapping
            field.type = f"TYPE_{kind.upper()}"
        else:
            field.type_name = kind
        if label == ["optional"]:
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{name}")


def serialized(file: Any) -> str:  # noqa: ANN401  # as above
    """A descriptor as a registry has it."""
    return base64.b64encode(file.SerializeToString()).decode()


def descriptor_set(*files: Any) -> bytes:  # noqa: ANN401  # as above
    content: bytes = FileDescriptorSet(file=files).SerializeToString()
    return content


def opened(
    kind: FormatKind,
    layout: FieldLayout,
    registry: Registry | str | None = None,
    **options: Any,  # noqa: ANN401  # as they are
) -> Any:  # noqa: ANN401  # a reader or a writer
    """What the layout asks a format for, with a registry in memory or at a URL."""
    module: Any = MODULES[kind]
    make = module.make_writer if layout.outputs or layout.answered else module.make_reader
    if kind is FormatKind.JSON:
        return make(StreamFormatSpec(kind=kind), layout)
    source = None
    if isinstance(registry, Registry):
        source = client(registry)
    if registry is not None:
        options["registry"] = registry if isinstance(registry, str) else "http://registry:8081"
    return make(StreamFormatSpec(kind=kind, options=options), layout, source)
