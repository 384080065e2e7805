"""Avro records become columns, and columns Avro records."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.core import (
    Datatype,
    InvalidArgumentError,
)
from headrace.core.spec.stream_parts import FormatKind
from headrace.streaming.formats import FieldLayout
from headrace.streaming.formats.registry import head
from tests.schema_registries import Registry
from tests.unit.streaming.formats.rows import (
    array,
    avro_bytes,
    avro_record,
    opened,
    reads,
    record,
    spec,
    writes,
)

NULLABLE = ["null", "float"]
HOME = avro_record(("zip", "string"), name="H")


def of_file(path: Path, schema: object, layout: FieldLayout, **options: Any) -> Any:  # noqa: ANN401  # as they are
    file = path / "schema.avsc"
    file.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return opened(FormatKind.AVRO, layout, schema_file=str(file), **options)


def test_kinds_of_values_are_read_as_models_take_them(tmp_path: Path) -> None:
    schema = avro_record(
        ("vector", {"type": "array", "items": "double"}),
        ("matrix", {"type": "array", "items": {"type": "array", "items": "int"}}),
        ("enum", {"type": "enum", "name": "E", "symbols": ["A", "B"]}),
        ("fixed", {"type": "fixed", "name": "F", "size": 2}),
        ("raw", "bytes"),
        ("missing", NULLABLE),
        ("there", NULLABLE),
        ("other", ["float", "null"]),
        ("choice", ["null", "string", "long"]),
        ("when", {"type": "long", "logicalType": "timestamp-millis"}),
        ("price", {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}),
        ("pay", ["null", {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}]),
        ("flag", "boolean"),
        ("user", ["null", avro_record(("age", "int"), ("home", HOME), name="U")]),
        ("nobody", ["null", "U"]),
        ("tags", {"type": "map", "values": "long"}),
    )  # fmt: skip
    row = {
        "vector": [0.5, 1.5], "matrix": [[1, 2], [3, 4]], "enum": "B", "fixed": b"ab", "raw": b"\0",
        "missing": None, "there": 2.5, "other": 0.25, "choice": 7, "when": 1700000000123,
        "price": b"\xcf\xc7", "pay": b"\x05", "flag": True,
        "user": {"age": 40, "home": {"zip": "8000"}}, "nobody": None, "tags": {"a": 1},
    }  # fmt: skip
    plain = json.loads(json.dumps(schema).replace('"logicalType"', '"was"'))
    inputs = ("vector", "matrix", "enum", "fixed", "raw", "missing", "there", "other", "choice",
              "when", "price", "flag", "user.age", "nobody.age")  # fmt: skip
    layout = reads(*map(spec, inputs), passed=["pay", "user.home.zip", "tags", "user"])
    read = of_file(tmp_path, schema, layout)

    found = read.decode([record(avro_bytes(plain, row))])

    assert found.errors == {}
    assert {name: column[0] for name, column in found.columns.items()} == {
        **{name: row[name] for name in inputs if name in row},
        "price": -123.45,
        "pay": "0.05",
        "user": row["user"],
        "user.age": 40,
        "nobody.age": None,
        "user.home.zip": "8000",
        "tags": {"a": 1},
    }


def test_readers_schema_gives_defaults_and_follows_aliases(tmp_path: Path) -> None:
    wanted = avro_record(("x", "double"))
    wanted["fields"] += [
        {"name": "y", "type": "float", "default": 9.0},
        {"name": "z", "type": "long", "aliases": ["old_z"]},
    ]
    (tmp_path / "wanted.avsc").write_text(json.dumps(wanted))
    written = avro_record(("x", "float"), ("old_z", "int"), ("gone", "string"))
    layout = reads(spec("x"), spec("y"), spec("z"))
    read = of_file(tmp_path, written, layout, reader_schema_file=str(tmp_path / "wanted.avsc"))
    value = avro_bytes(written, {"x": 0.5, "old_z": 3, "gone": "g"})

    found = read.decode([record(value), record(value[:-1]), record(value + b"!")])

    assert found.columns == {"x": [0.5], "y": [9.0], "z": [3]}
    assert sorted(found.errors) == [1, 2]


def test_decimals_are_not_read_with_another_scale(tmp_path: Path) -> None:
    def decimal(scale: int) -> dict[str, Any]:
        kind = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": scale}
        return avro_record(("x", kind))

    wanted = tmp_path / "wanted.avsc"
    wanted.write_text(json.dumps(decimal(3)))

    with pytest.raises(InvalidArgumentError, match="with 2 decimal places, but is read with 3"):
        of_file(tmp_path, decimal(2), reads(spec("x")), reader_schema_file=str(wanted))


def test_schemas_that_refer_to_each_other_in_a_circle_are_refused() -> None:
    registry = Registry()
    for name, other in (("A", "B"), ("B", "A")):
        more = [{"name": other, "subject": other, "version": 1}]
        registry.add(name, avro_record(("x", ["null", other]), name=name), references=more)
    read = opened(FormatKind.AVRO, reads(spec("x")), registry)

    found = read.decode([record(head(1) + b"\x02" * 100_000)])

    assert "'A' holds itself" in str(found.errors[0])


def test_record_whose_schema_refers_to_nothing_costs_itself_only() -> None:
    registry = Registry()
    more = [{"name": "B", "subject": "B", "version": 1}]
    registry.add("A", avro_record(("x", "B")), references=more)
    read = opened(FormatKind.AVRO, reads(spec("x")), registry)

    found = read.decode([record(head(1) + b"\0")])

    assert "no /subjects/B/versions/1" in str(found.errors[0])


def test_newest_schema_of_the_subject_is_written_if_none_is_given() -> None:
    registry = Registry()
    schema = avro_record(
        ("score", ["null", "double"]),
        ("label", {"type": "enum", "name": "L", "symbols": ["no", "yes"]}),
        ("pay", {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}),
    )
    schema["fields"].append({"name": "note", "type": "string", "default": "-"})
    number = registry.add("out-value", schema)
    layout = writes(spec("p", Datatype.FP32, 1), spec("label", Datatype.BYTES), answered=["pay"])
    write = opened(FormatKind.AVRO, layout, registry, subject="out-value", names={"p": "score"})

    columns = {"p": array([[0.5]], Datatype.FP32), "label": array([b"yes"], Datatype.BYTES)}
    (value,) = write.encode(columns | {"pay": ["-1.25"]}, 1)

    plain = json.loads(json.dumps(schema).replace('"logicalType"', '"was"'))
    row = {"score": 0.5, "label": "yes", "pay": b"\x83", "note": "-"}
    assert value == avro_bytes(plain, row, head(number))


@pytest.mark.parametrize("pay", ["1.255", "ten", "NaN", "1e999999999", [1]])
def test_what_is_no_decimal_is_refused(tmp_path: Path, pay: object) -> None:
    kind = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
    write = of_file(tmp_path, avro_record(("pay", kind)), writes(answered=["pay"]))

    with pytest.raises(InvalidArgumentError, match="no decimal with 2 places"):
        write.encode({"pay": [pay]}, 1)


@pytest.mark.parametrize(
    ("datatype", "fields", "why"),
    [
        (Datatype.FP32, [("q", "float")], "have 'p', but their schema has no 'p', only: q"),
        (Datatype.FP32, [("p", "string")], "'p' is FP32, but in the .* schema 'p' is string"),
        (Datatype.FP32, [("p", ["null"])], "'p' is FP32, but in the .* schema 'p' is null"),
        (Datatype.FP32, [("p", {"type": "array", "items": "float"})], "'p' with 1 dimensions"),
        (Datatype.FP32, [("p", "float"), ("q", "int")], "needs 'q', which answers do not have"),
        (Datatype.FP64, [("p", "float")], "'p' is FP64"),
        (Datatype.INT64, [("p", "int")], "'p' is INT64"),
        (Datatype.UINT32, [("p", "int")], "'p' is UINT32"),
        (Datatype.INT8, [("p", "float")], "'p' is INT8"),
        (Datatype.BOOL, [("p", "int")], "'p' is BOOL"),
    ],
)
def test_schema_that_answers_do_not_fit_is_refused_at_the_start(
    tmp_path: Path, datatype: Datatype, fields: list[tuple[str, Any]], why: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        of_file(tmp_path, avro_record(*fields), writes(spec("p", datatype)))


def test_file_that_is_no_schema_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"schema_file: '.*\.avsc': the Avro schema"):
        of_file(tmp_path, "{", reads(spec("x")))
