"""Avro: what is read is what fastavro reads, and what is written is read again."""

import json
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype
from headrace.core.spec.stream_parts import FormatKind
from headrace.streaming.formats import FieldSpec
from headrace.streaming.formats.avro import make_reader, make_schema, make_writer
from headrace.streaming.formats.avro_rows import row_reader
from headrace.streaming.formats.avro_schemas import read_schema
from headrace.streaming.formats.options import SchemaOptions
from tests.schema_registries import Registry
from tests.unit.streaming.formats.rows import (
    avro_bytes,
    avro_record,
    client,
    reads,
    record,
    settings,
    writes,
)

Kind = tuple[Any, st.SearchStrategy[Any]]

FLOATS = st.floats(width=32, allow_nan=False)
PRIMITIVES: list[Kind] = [
    ("null", st.none()),
    ("boolean", st.booleans()),
    ("int", st.integers(-(1 << 31), (1 << 31) - 1)),
    ("long", st.integers(-(1 << 63), (1 << 63) - 1)),
    ("float", FLOATS),
    ("double", st.floats(allow_nan=False)),
    ("bytes", st.binary(max_size=9)),
    ("string", st.text(max_size=9)),
]


def lists(kind: Kind) -> Kind:
    return {"type": "array", "items": kind[0]}, st.lists(kind[1], max_size=3)


def maps(kind: Kind) -> Kind:
    values = st.dictionaries(st.text(max_size=3), kind[1], max_size=3)
    return {"type": "map", "values": kind[0]}, values


def nullable(kind: Kind, *, first: bool) -> Kind:
    names = ["null", kind[0]] if first else [kind[0], "null"]
    return names, st.none() | kind[1]


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    """A type without names, and its values."""
    kind = draw(st.sampled_from(PRIMITIVES))
    for _ in range(draw(st.integers(0, 3))):
        if kind[0] != "null" and not isinstance(kind[0], list) and draw(st.booleans()):
            kind = nullable(kind, first=draw(st.booleans()))
        elif kind[0] != "null":
            kind = draw(st.sampled_from([lists, maps]))(kind)
    return kind


@pytest.mark.slow
@given(data=st.data(), fields=st.lists(kinds(), min_size=1, max_size=8))
def test_values_are_read_as_fastavro_reads_them(data: st.DataObject, fields: list[Kind]) -> None:
    inner = avro_record(*((f"f{at}", kind) for at, (kind, _) in enumerate(fields)), name="Inner")
    schema = avro_record(*((f"f{at}", kind) for at, (kind, _) in enumerate(fields)), ("r", inner))
    row: dict[str, Any] = {f"f{at}": data.draw(values) for at, (_, values) in enumerate(fields)}
    row["r"] = dict(row)
    names = list(row)
    read = row_reader(read_schema(json.dumps(schema)), None, inputs=names, passed=())

    found = read.parse(b"head" + avro_bytes(schema, row), 4)

    assert read.columns([found]) == {name: [value] for name, value in row.items()}
    assert fastavro.validate(row, fastavro.parse_schema(schema))


NUMBERS = [one for one in Datatype if one is not Datatype.BYTES]


@st.composite
def outputs(draw: st.DrawFn, rows: int) -> tuple[FieldSpec, Any]:
    """An output, and its values for some rows."""
    datatype = draw(st.sampled_from(list(Datatype)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    count = rows * int(np.prod(shape))
    if datatype is Datatype.BYTES:
        flat: list[Any] = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        array = np.array([one.encode() for one in flat] or [], object)
    else:
        raw = draw(st.binary(min_size=count * 8, max_size=count * 8))
        with np.errstate(all="ignore"):
            wide = np.frombuffer(raw, "<i8")
            array = wide.astype(datatype.dtype)
        if datatype is Datatype.UINT64:
            array = array >> np.uint64(1)  # Avro has no more than 63 bits for them
    return FieldSpec(name="", datatype=datatype, shape=shape), array.reshape(rows, *shape)


def flat(value: object) -> list[object]:
    """All values of an array or of nested lists, texts as texts."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [one for part in value for one in flat(part)]
    return [value.decode() if isinstance(value, bytes) else getattr(value, "item", lambda: value)()]


@pytest.mark.slow
@given(data=st.data(), rows=st.integers(1, 4), ids=st.data())
def test_answers_are_read_as_they_were_written(
    data: st.DataObject, rows: int, ids: st.DataObject
) -> None:
    made = data.draw(st.lists(outputs(rows), min_size=1, max_size=4))
    specs = [
        FieldSpec(name=f"o{at}", datatype=one.datatype, shape=one.shape)
        for at, (one, _) in enumerate(made)
    ]
    keys = ids.draw(
        st.lists(
            st.none() | st.text(max_size=5) | st.integers(-(1 << 63), (1 << 63) - 1) | FLOATS,
            min_size=rows,
            max_size=rows,
        )
    )
    columns: dict[str, Any] = {f"o{at}": values for at, (_, values) in enumerate(made)}
    registry = Registry()
    said: dict[str, Any] = {"registry": "http://registry", "subject": "out-value", "register": True}
    spec = settings(FormatKind.AVRO, **said)
    layout = writes(*specs, answered=["id"])

    values = make_writer(spec, layout, client(registry)).encode(columns | {"id": keys}, rows)
    back = make_reader(spec, reads(*specs, passed=["id"]), client(registry))
    found = back.decode([record(value) for value in values])

    assert registry.schemas[0]["schema"] == make_schema(layout, SchemaOptions(**said))
    assert found.errors == {}
    assert list(found.columns["id"]) == keys
    for name, array in columns.items():
        assert [flat(value) for value in found.columns[name]] == [flat(row) for row in array]
