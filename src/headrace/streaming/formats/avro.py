"""Avro format with schemas from a registry or from a file.

With a registry, values begin as in Confluent's wire format; without one they are only the record's
bytes. A record is read with its writer schema, and fields are matched by name, so schemas may
change as long as names stay the same. Answers are written with a given schema, or with one
generated from the outputs.
"""

import io
import struct
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import fastavro
import msgspec

from headrace.core import Datatype, InvalidArgumentError
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, FieldLayout, FieldSpec
from headrace.streaming.formats.avro_rows import RowReader
from headrace.streaming.formats.avro_schemas import AvroSchema, Node, parse, read_schema
from headrace.streaming.formats.options import (
    INTEGERS,
    SchemaOptions,
    field_names,
    plain_values,
    read_file,
)
from headrace.streaming.formats.registry import HEAD_BYTES, Schema, SchemaRegistry, head
from headrace.streaming.formats.schema_values import (
    MessagePath,
    SchemaReader,
    SchemaWriter,
    options_of,
)

_BROKEN: Final = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    AttributeError,
    struct.error,
)
_NATURAL: Final = {
    Datatype.BOOL: "boolean",
    Datatype.INT8: "int",
    Datatype.INT16: "int",
    Datatype.INT32: "int",
    Datatype.UINT8: "int",
    Datatype.UINT16: "int",
    Datatype.UINT32: "long",
    Datatype.INT64: "long",
    Datatype.UINT64: "long",
    Datatype.FP16: "float",
    Datatype.FP32: "float",
    Datatype.FP64: "double",
    Datatype.BYTES: "string",
}
_ANY: Final = ["null", "boolean", "long", "double", "string", "bytes"]
_MAX_DIGITS: Final = 150  # digits of a decimal
_TEXTS: Final = frozenset({"string", "enum"})


def make_schema(layout: FieldLayout, options: SchemaOptions) -> str:
    """Return a schema for answers: a record, with arrays for vectors.

    A passed field is nullable; its type is any scalar unless `types` names one.
    """
    called = field_names(layout, options.names)
    fields: list[Node] = []
    for name in layout.answered:
        datatype = options.types.get(name)
        kind = _ANY if datatype is None else ["null", _NATURAL[datatype]]
        fields.append({"name": called[name], "type": kind, "default": None})
    for spec in layout.outputs:
        node: Node = _NATURAL[spec.datatype]
        for _ in spec.shape:
            node = {"type": "array", "items": node}
        fields.append({"name": called[spec.name], "type": node})
    record = {"type": "record", "name": "Answer", "namespace": "headrace", "fields": fields}
    return msgspec.json.encode(record).decode()


class RowWriter:
    """Writes answers with one schema.

    Args:
        head: Prefix of each value.

    Raises:
        InvalidArgumentError: The schema lacks a field for an output, or has a field without a
            default that answers do not have.
    """

    def __init__(
        self, schema: AvroSchema, layout: FieldLayout, names: Mapping[str, str], head: bytes
    ) -> None:
        self._schema = parse(schema.root)
        self._head = head
        called = field_names(layout, names)
        fields_by_name = {field["name"]: field for field in schema.root["fields"]}
        for spec in layout.outputs:
            if spec.name not in called or called[spec.name] not in fields_by_name:
                raise _missing_field(spec.name, called[spec.name], fields_by_name)
        for name in layout.answered:
            if called[name] not in fields_by_name:
                raise _missing_field(name, called[name], fields_by_name)
        for name, declared in fields_by_name.items():
            if name not in called.values() and "default" not in declared:
                msg = f"the answers' schema needs '{name}', which answers do not have: give it a"
                raise InvalidArgumentError(f"{msg} default, or choose another sink_format")
        self._fields = [
            _Field(name, called[name], schema, fields_by_name[called[name]]["type"])
            for name in layout.answered
        ] + [
            _Field(
                spec.name,
                called[spec.name],
                schema,
                fields_by_name[called[spec.name]]["type"],
                spec,
            )
            for spec in layout.outputs
        ]

    def write(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """Return a value for each row.

        Raises:
            InvalidArgumentError: A row does not fit the schema.
        """
        lists = [field.values(columns[field.name], rows) for field in self._fields]
        called = [field.called for field in self._fields]
        encoded: list[bytes] = []
        write, schema, head = fastavro.schemaless_writer, self._schema, self._head
        try:
            for values in zip(*lists, strict=True) if lists else [()] * rows:
                buffer = io.BytesIO()
                buffer.write(head)
                write(buffer, schema, dict(zip(called, values, strict=True)))
                encoded.append(buffer.getvalue())
        except _BROKEN as error:
            msg = f"the answer is not as its Avro schema says: {type(error).__name__}: {error}"
            raise InvalidArgumentError(msg[:400]) from None
        return encoded


class _Field:
    """A field of answers, with its conversion."""

    def __init__(
        self,
        name: str,
        called: str,
        schema: AvroSchema,
        node: Node,
        spec: FieldSpec | None = None,
    ) -> None:
        self.name = name
        self.called = called
        kinds = _kinds(schema, node)
        self._scale = next((kind["scale"] for kind in kinds if "scale" in kind), None)
        self._size = next((kind.get("size", 0) for kind in kinds if "scale" in kind), 0)
        self._is_scalar = self._is_text = False
        if spec is None:
            return
        rank = 0
        while kinds and all(kind["type"] == "array" for kind in kinds):
            kinds = _kinds(schema, kinds[0]["items"])
            rank += 1
        types = {kind["type"] for kind in kinds}
        self._is_scalar = rank == 0 and spec.shape == (1,)
        if rank != len(spec.shape) and not self._is_scalar:
            msg = f"output '{name}' has the shape {list(spec.shape)}, but the answers' schema has"
            raise InvalidArgumentError(f"{msg} '{called}' with {rank} dimensions")
        if self._scale is not None or not types & _allowed(spec.datatype):
            msg = f"output '{name}' is {spec.datatype}, but in the answers' schema '{called}' is"
            raise InvalidArgumentError(f"{msg} {' or '.join(sorted(types)) or 'null'}")
        self._is_text = bool(types & _TEXTS)

    def values(self, column: Column, rows: int) -> list[object]:
        values = plain_values(column, rows, is_scalar=self._is_scalar, is_text=self._is_text)
        if self._scale is None:
            return values
        return [_unscaled(self.name, value, self._scale, self._size) for value in values]


def _missing_field(name: str, called: str, positions: Mapping[str, Any]) -> InvalidArgumentError:
    there = ", ".join(list(positions)[:20])
    return InvalidArgumentError(
        f"answers have '{name}', but their schema has no '{called}', only: {there}; "
        "see options.names, or choose another sink_format"
    )


def _kinds(schema: AvroSchema, node: Node) -> Sequence[dict[str, Any]]:
    """Return the types that a value can have, without null, as objects."""
    every = node if isinstance(node, list) else [node]
    resolved = [schema.resolved(branch) for branch in every]
    return [
        branch if isinstance(branch, dict) else {"type": branch}
        for branch in resolved
        if branch != "null"
    ]


def _allowed(datatype: Datatype) -> frozenset[str]:
    """Return the Avro types that hold all values of a datatype."""
    if datatype is Datatype.BYTES:
        return frozenset({"string", "bytes", "enum"})
    if datatype in (Datatype.FP16, Datatype.FP32):
        return frozenset({"float", "double"})
    if datatype in INTEGERS:
        return frozenset({_NATURAL[datatype], "long"})
    return frozenset({_NATURAL[datatype]})


def _unscaled(name: str, value: object, scale: int, size: int) -> object:
    """Return a decimal in Avro's form: the bytes of an integer, `size` of them if it is fixed."""
    if value is None:
        return None
    try:
        exact = Decimal(str(value)).scaleb(scale)
        if exact.is_finite() and exact.adjusted() < _MAX_DIGITS and int(exact) == exact:
            number = int(exact)
            length = size or (number.bit_length() + 8) // 8
            return number.to_bytes(length, "big", signed=True)
    except ArithmeticError:  # not a number, or too large for its bytes
        pass
    msg = f"'{name}' is {str(value)[:40]}, which is no decimal with {scale} places"
    raise InvalidArgumentError(msg)


_PROTOBUF_ONLY = frozenset({"descriptor_file", "message"})


def _from_file(path: str, description: str) -> AvroSchema:
    try:
        return read_schema(read_file(path, description).decode())
    except (InvalidArgumentError, UnicodeDecodeError) as error:
        msg = f"options.{description}: '{path}': {error}"
        raise InvalidArgumentError(msg) from None


def _from_registry(registry: SchemaRegistry, schema: Schema) -> AvroSchema:
    if schema.schema_type != "AVRO":
        msg = f"it is {schema.schema_type}, not AVRO"
        raise InvalidArgumentError(msg)
    others = registry.referenced(schema)
    return read_schema(schema.text, {name: other.text for name, other in others.items()})


def make_reader(
    settings: StreamFormatSpec, layout: FieldLayout, registry: SchemaRegistry | None = None
) -> SchemaReader:
    """Return the Avro reader; `registry` replaces the one in the options in tests."""
    options, source = options_of("avro", settings, _PROTOBUF_ONLY, registry)
    inputs, passed = [spec.name for spec in layout.inputs], list(layout.passed)
    target = None
    if options.reader_schema_file:
        target = _from_file(options.reader_schema_file, "reader_schema_file")

    def of_schema(schema: AvroSchema) -> RowReader:
        return RowReader(schema, target, inputs=inputs, passed=passed)

    def of_number(number: int, _: MessagePath) -> RowReader:
        assert source is not None
        return of_schema(_from_registry(source, source.by_id(number)))

    plain: RowReader | None = None
    if source is None:
        if not options.schema_file:
            msg = "Avro is read with a schema: name options.registry or options.schema_file"
            raise InvalidArgumentError(msg)
        plain = of_schema(_from_file(options.schema_file, "schema_file"))
    elif target is not None:
        of_schema(target)  # rejected at the start if a field is missing
    return SchemaReader(
        [*inputs, *passed],
        plain=plain,
        head_bytes=HEAD_BYTES,
        path=lambda _: ((), HEAD_BYTES),
        reader=of_number,
    )


def make_writer(
    settings: StreamFormatSpec, layout: FieldLayout, registry: SchemaRegistry | None = None
) -> SchemaWriter[AvroSchema]:
    """Return the Avro writer; `registry` as in `make_reader`."""
    options, source = options_of("avro", settings, _PROTOBUF_ONLY, registry)
    fixed_schema: AvroSchema | None = None
    if options.schema_file:
        fixed_schema = _from_file(options.schema_file, "schema_file")
    elif source is None or options.register:
        fixed_schema = read_schema(make_schema(layout, options))

    def newest(schema: Schema) -> AvroSchema:
        assert source is not None
        return _from_registry(source, schema)

    def writer(schema: AvroSchema, number: int) -> RowWriter:
        return RowWriter(schema, layout, options.names, b"" if source is None else head(number))

    return SchemaWriter(
        options,
        source,
        fixed_schema=fixed_schema,
        text=lambda schema: Schema(text=schema.text),
        newest=newest,
        writer=writer,
    )
