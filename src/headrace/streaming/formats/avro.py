"""Avro format with schemas from a registry or from a file.

With a registry, values begin as in Confluent's wire format; without one they are only the record's
bytes. A record is read with its writer schema, and fields are matched by name, so schemas may
change as long as names stay the same. Answers are written with a given schema, or with one
generated from the outputs.
"""

import io
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import fastavro
import msgspec

from headrace.core import Datatype, InvalidArgumentError
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.streaming.formats import Column, FieldLayout, FieldSpec
from headrace.streaming.formats.avro_rows import row_reader
from headrace.streaming.formats.avro_schemas import AvroSchema, Node, read_schema
from headrace.streaming.formats.options import (
    field_names,
    from_file,
    plain_values,
    read_options,
)
from headrace.streaming.formats.registry import HEAD_BYTES, head
from headrace.streaming.formats.schema_values import (
    MessagePath,
    RowReader,
    RowWriter,
    makers,
    names_in_schema,
)

_NATURAL: Final = {
    **dict.fromkeys((Datatype.INT8, Datatype.INT16, Datatype.INT32), "int"),
    **dict.fromkeys((Datatype.UINT8, Datatype.UINT16), "int"),
    **dict.fromkeys((Datatype.UINT32, Datatype.INT64, Datatype.UINT64), "long"),
    **dict.fromkeys((Datatype.FP16, Datatype.FP32), "float"),
    Datatype.FP64: "double",
    Datatype.BOOL: "boolean",
    Datatype.BYTES: "string",
}
_WIDER: Final = {
    "int": {"int", "long"},
    "float": {"float", "double"},
    "string": {"string", "bytes", "enum"},
}
"""Avro types that hold all values of a natural type; others hold only their own."""
_ANY: Final = ["null", "boolean", "long", "double", "string", "bytes"]
_MAX_DIGITS: Final = 150  # digits of a decimal
_TEXTS: Final = frozenset({"string", "enum"})


def _field_values(
    name: str, called: str, schema: AvroSchema, node: Node, spec: FieldSpec | None
) -> Callable[[Column, int], list[object]]:
    """Return the conversion of a field of answers; raise for an output that the field cannot hold.

    Args:
        spec: The output; None for a passed field.
    """
    kinds = _kinds(schema, node)
    decimal = next((kind for kind in kinds if "scale" in kind), None)
    is_scalar = is_text = False
    if spec is not None:
        rank = 0
        while kinds and all(kind["type"] == "array" for kind in kinds):
            kinds = _kinds(schema, kinds[0]["items"])
            rank += 1
        types = {kind["type"] for kind in kinds}
        is_scalar = rank == 0 and spec.shape == (1,)
        if rank != len(spec.shape) and not is_scalar:
            msg = f"output '{name}' has the shape {list(spec.shape)}, but the answers' schema has"
            raise InvalidArgumentError(f"{msg} '{called}' with {rank} dimensions")
        natural = _NATURAL[spec.datatype]
        if decimal is not None or not types & _WIDER.get(natural, {natural}):
            msg = f"output '{name}' is {spec.datatype}, but in the answers' schema '{called}' is"
            raise InvalidArgumentError(f"{msg} {' or '.join(sorted(types)) or 'null'}")
        is_text = bool(types & _TEXTS)

    def values(column: Column, rows: int) -> list[object]:
        plain = plain_values(column, rows, is_scalar=is_scalar, is_text=is_text)
        if decimal is None:
            return plain
        return [_unscaled(name, value, decimal["scale"], decimal.get("size", 0)) for value in plain]

    return values


def _kinds(schema: AvroSchema, node: Node) -> Sequence[dict[str, Any]]:
    """Return the types that a value can have, without null, as objects."""
    every = node if isinstance(node, list) else [node]
    resolved = [schema.resolved(branch) for branch in every]
    return [
        branch if isinstance(branch, dict) else {"type": branch}
        for branch in resolved
        if branch != "null"
    ]


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


class AvroFormat:
    """The format `avro` for one stream; see `SchemaFormat`.

    Raises:
        InvalidArgumentError: The reader schema cannot be used, or lacks a field.
    """

    kind = "avro"
    file_option = "schema_file"
    wire = ""
    head_bytes = HEAD_BYTES
    file_reads_all = False

    def __init__(self, settings: StreamFormatSpec, layout: FieldLayout) -> None:
        unused = frozenset({"descriptor_file", "message"})
        self.options = read_options(self.kind, settings.options, unused)
        self.layout = layout
        self._target: AvroSchema | None = None
        if self.options.reader_schema_file:
            self._target = from_file(self.options.reader_schema_file, "reader_schema_file", _read)
            self.reader(self._target, None)  # rejected at the start if a field is missing

    def from_file(self) -> AvroSchema | None:
        """Return the schema of `schema_file`."""
        path = self.options.schema_file
        return from_file(path, "schema_file", _read) if path else None

    from_registry = staticmethod(read_schema)

    def generated(self) -> AvroSchema:
        """Return a schema of answers: a record, with arrays for vectors.

        A passed field is nullable; its type is any scalar unless `types` names one.
        """
        called = field_names(self.layout, self.options.names)
        fields: list[Node] = []
        for name in self.layout.answered:
            datatype = self.options.types.get(name)
            kind = _ANY if datatype is None else ["null", _NATURAL[datatype]]
            fields.append({"name": called[name], "type": kind, "default": None})
        for spec in self.layout.outputs:
            node: Node = _NATURAL[spec.datatype]
            for _ in spec.shape:
                node = {"type": "array", "items": node}
            fields.append({"name": called[spec.name], "type": node})
        record = {"type": "record", "name": "Answer", "namespace": "headrace", "fields": fields}
        return read_schema(msgspec.json.encode(record).decode())

    def text(self, schema: AvroSchema) -> str:
        """Return the original text."""
        return schema.text

    def path(self, _: bytes) -> tuple[MessagePath, int]:
        """Return no path: an Avro schema is one record."""
        return (), HEAD_BYTES

    def reader(self, schema: AvroSchema, _: MessagePath | None) -> RowReader:
        """Return the reader of a schema's records."""
        inputs = [spec.name for spec in self.layout.inputs]
        return row_reader(schema, self._target, inputs=inputs, passed=self.layout.passed)

    def writer(self, schema: AvroSchema, number: int | None) -> RowWriter:
        """Return the writer with a schema.

        Raises:
            InvalidArgumentError: The schema lacks a field for an output, has another type for it,
                or has a field without a default that answers do not have.
        """
        fields = {field["name"]: field for field in schema.root["fields"]}
        required = {name: "default" not in field for name, field in fields.items()}
        called = names_in_schema(self.layout, self.options.names, required)
        specs = {spec.name: spec for spec in self.layout.outputs}
        values = {
            name: _field_values(name, field, schema, fields[field]["type"], specs.get(name))
            for name, field in called.items()
        }

        def encode(row: dict[str, object]) -> bytes:
            buffer = io.BytesIO()
            fastavro.schemaless_writer(buffer, schema.root, row)
            return buffer.getvalue()

        begin = b"" if number is None else head(number)
        return RowWriter(
            kind="Avro schema", head=begin, called=called, values=values, encode=encode
        )


def _read(content: bytes) -> AvroSchema:
    return read_schema(content.decode())


make_reader, make_writer = makers(AvroFormat)
