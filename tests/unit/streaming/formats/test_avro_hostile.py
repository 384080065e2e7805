"""Schemas and values that would take a process down cost one record, and no time."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.streaming.formats.avro_rows import row_reader
from headrace.streaming.formats.avro_schemas import read_schema
from headrace.streaming.formats.schema_values import RowReader
from tests.unit.streaming.formats.rows import avro_bytes, avro_record

HUGE = b"\xfe" + b"\xff" * 8 + b"\x01"  # the largest long
LEAST = b"\xff" * 9 + b"\x01"  # the least
Z = avro_record(("w", ["null", "int"]), name="Z")
SCHEMA = avro_record(
    ("a", {"type": "array", "items": "float"}),
    ("s", "string"),
    ("u", ["null", "long", {"type": "map", "values": "bytes"}]),
    ("e", {"type": "enum", "name": "E", "symbols": ["A", "B"]}),
    ("f", {"type": "fixed", "name": "F", "size": 3}),
    ("x", "float"),
    ("y", "boolean"),
    ("n", ["null", avro_record(("q", "double"), ("z", {"type": "array", "items": Z}), name="N")]),
)
ROW = {"a": [1.0], "s": "abc", "u": 3, "e": "B", "f": b"abc", "x": 1.0, "y": True,
       "n": {"q": 2.0, "z": [{"w": 1}]}}  # fmt: skip
GOOD = avro_bytes(SCHEMA, ROW)


def reader(schema: object, *names: str, target: object = None) -> RowReader:
    wanted = None if target is None else read_schema(json.dumps(target))
    return row_reader(read_schema(json.dumps(schema)), wanted, inputs=names, passed=())


def nested(depth: int) -> Any:  # noqa: ANN401  # a schema
    kind: Any = "float"
    for _ in range(depth):
        kind = {"type": "array", "items": kind}
    return avro_record(("x", kind))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (avro_record(("x", ["null", "R"])), "'R' holds itself"),
        (avro_record(("x", avro_record(("y", {"type": "array", "items": "R"}), name="S"))),
         "'R' holds itself"),
        (avro_record(("x", {"type": "array", "items": "null"})), "items take no bytes"),
        (avro_record(("x", {"type": "array", "items": avro_record(name="S")})), "no bytes"),
        (avro_record(("x", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}})),
         "no bytes"),
        (avro_record(("x", {"type": "fixed", "name": "F", "size": 1 << 40})), "'F' is fixed"),
        (avro_record(("x", {"type": "fixed", "name": "F", "size": True})), "'F' is fixed"),
        (nested(70), "more than 64 levels"),
        (avro_record(*((f"f{at}", "int") for at in range(10_001))), "10000 parts"),
        (avro_record(("x", "Y")), "uses 'Y', which nothing defines"),
        (avro_record(("x", [])), "a union of nothing"),
        (avro_record(("x", "int"), ("x", "int")), "two fields 'x'"),
        (avro_record(("x", avro_record(name="R"))), "defines 'R' twice"),
        (avro_record(("x", {"type": "enum", "name": "E"})), "cannot be used"),
        (avro_record(("x", {"type": "bytes", "logicalType": "decimal", "scale": 1 << 40})),
         "a decimal whose scale"),
        ({"type": "record", "name": "R"}, "no list of fields"),
        ({"type": "record", "fields": []}, "without a name"),
        ({"type": "record", "name": "R", "fields": [{"type": "int"}]}, "a field without a name"),
        (avro_record(("x", 7)), "7 is no type"),
        ("string", "is no record"),
        (["null", "string"], "is no record"),
    ],
)  # fmt: skip
def test_schema_that_is_not_safe_is_refused(schema: object, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        read_schema(json.dumps(schema))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ud800"])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be used"):
        read_schema(text)


@pytest.mark.parametrize("field", ["x.y", "nothing", "n.q.r", "a.b", "choice.q"])
def test_missing_field_is_told_with_those_that_are_there(field: str) -> None:
    schema = avro_record(*((one["name"], one["type"]) for one in SCHEMA["fields"]),
                         ("choice", ["N", avro_record(name="Other")]))  # fmt: skip

    with pytest.raises(InvalidArgumentError, match=f"no field '{field}'"):
        reader(schema, field)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", HUGE),
        ("string", LEAST),
        ("string", b"\x01"),
        ("string", b"\x02\xff"),
        ("string", b"\x80"),
        ("bytes", HUGE + b"abc"),
        ("long", b"\xff" * 11),
        ("long", b""),
        ({"type": "array", "items": "float"}, HUGE),
        ({"type": "array", "items": "float"}, b"\x01\x02\xff"),
        ({"type": "array", "items": "float"}, LEAST + HUGE),
        ({"type": "array", "items": "long"}, HUGE + b"\0"),
        ({"type": "array", "items": "string"}, struct.pack("B", 126) * 3),
        ({"type": "map", "values": "null"}, HUGE),
        ({"type": "map", "values": "long"}, b"\x02\x02\xff\0\0"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x02"),
        ({"type": "fixed", "name": "F", "size": 4}, b"abc"),
        (["null", "float"], b"\x04"),
        (["null", "float"], b"\x02ab"),
        (["null", "string"], b"\x01"),
        (["null", "string", "long"], b"\x01"),
        (["null", "string", "long"], b"\x06"),
        ("double", b"1234567"),
    ],
)
def test_hostile_value_is_an_error(kind: object, value: bytes) -> None:
    read = reader(avro_record(("x", kind)), "x")

    with pytest.raises(InvalidArgumentError, match="not readable as Avro"):
        read.parse(value, 0)


READERS = [
    reader(SCHEMA, "a", "u", "x", "n.q"),
    reader(SCHEMA, "s", "x", target=avro_record(("s", "string"), ("x", "double"))),
]


@pytest.mark.slow
@given(
    data=st.data(),
    cut=st.integers(0, len(GOOD)),
    end=st.integers(0, len(GOOD)),
    put=st.sampled_from([b"", HUGE, LEAST, b"\xff" * 20, b"\0"]) | st.binary(max_size=9),
)
def test_damaged_values_are_read_or_refused(
    data: st.DataObject, cut: int, end: int, put: bytes
) -> None:
    value = GOOD[:cut] + put + GOOD[end:]
    read = data.draw(st.sampled_from(READERS))

    try:
        row = read.parse(value, 0)
    except InvalidArgumentError:
        return

    assert all(len(column) == 1 for column in read.columns([row]).values())
