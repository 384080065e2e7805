"""Avro records become columns, and columns Avro records."""

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

from headrace.core import (
    Datatype,
    InvalidArgumentError,
)
from headrace.core.spec.stream_parts import FormatKind
from headrace.streaming.formats import FieldLayout, avro
from headrace.streaming.formats.registry import head
from tests.schema_registries import Registry
from tests.unit.streaming.formats.rows import (
    array,
    avro_bytes,
    avro_record,
    client,
    open_format,
    reads,
    record,
    settings,
    spec,
    writes,
)

URL = "http://registry:8081"
NULLABLE = ["null", "float"]
HOME = avro_record(("zip", "string"), name="H")


def of_registry(registry: Registry, layout: FieldLayout, **options: Any) -> Any:  # noqa: ANN401  # as they are
    return open_format(
        avro, settings(FormatKind.AVRO, registry=URL, **options), layout, client(registry)
    )


def of_file(path: Path, schema: object, layout: FieldLayout, **options: Any) -> Any:  # noqa: ANN401  # as they are
    file = path / "schema.avsc"
    file.write_text(json.dumps(schema))
    return open_format(avro, settings(FormatKind.AVRO, schema_file=str(file), **options), layout)


def read_back(schema: str, value: bytes) -> Any:  # noqa: ANN401  # a record
    return fastavro.schemaless_reader(
        io.BytesIO(value), fastavro.parse_schema(json.loads(schema)), None
    )


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

    (tmp_path / "wanted.avsc").write_text(json.dumps(decimal(3)))

    with pytest.raises(InvalidArgumentError, match="with 2 decimal places, but is read with 3"):
        of_file(
            tmp_path,
            decimal(2),
            reads(spec("x")),
            reader_schema_file=str(tmp_path / "wanted.avsc"),
        )


def test_schemas_that_refer_to_each_other_in_a_circle_are_refused() -> None:
    registry = Registry()
    for name, other in (("A", "B"), ("B", "A")):
        more = [{"name": other, "subject": other, "version": 1}]
        registry.add(name, avro_record(("x", ["null", other]), name=name), references=more)
    read = of_registry(registry, reads(spec("x")))

    found = read.decode([record(head(1) + b"\x02" * 100_000)])

    assert "'A' holds itself" in str(found.errors[0])


def test_record_whose_schema_refers_to_nothing_costs_itself_only() -> None:
    registry = Registry()
    more = [{"name": "B", "subject": "B", "version": 1}]
    registry.add("A", avro_record(("x", "B")), references=more)
    read = of_registry(registry, reads(spec("x")))

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
    write = of_registry(registry, layout, subject="out-value", names={"p": "score"})

    (value,) = write.encode(
        {
            "p": array([[0.5]], Datatype.FP32),
            "label": array([b"yes"], Datatype.BYTES),
            "pay": ["-1.25"],
        },
        1,
    )

    plain = json.dumps(schema).replace('"logicalType"', '"was"')
    assert value[:5] == head(number)
    assert read_back(plain, value[5:]) == {
        "score": 0.5,
        "label": "yes",
        "pay": b"\x83",
        "note": "-",
    }


@pytest.mark.parametrize("pay", ["1.255", "ten", "NaN", "1e999999999", [1]])
def test_what_is_no_decimal_is_refused(tmp_path: Path, pay: object) -> None:
    kind = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
    write = of_file(tmp_path, avro_record(("pay", kind)), writes(answered=["pay"]))

    with pytest.raises(InvalidArgumentError, match="no decimal with 2 places"):
        write.encode({"pay": [pay]}, 1)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([("q", "float")], "answers have 'p', but their schema has no 'p', only: q"),
        ([("p", "string")], "'p' is FP32, but in the answers' schema 'p' is string"),
        ([("p", ["null"])], "'p' is FP32, but in the answers' schema 'p' is null"),
        ([("p", {"type": "array", "items": "float"})], "has 'p' with 1 dimensions"),
        ([("p", "float"), ("more", "int")], "needs 'more', which answers do not have"),
    ],
)
def test_schema_that_answers_do_not_fit_is_refused_at_the_start(
    tmp_path: Path, fields: list[tuple[str, Any]], why: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        of_file(tmp_path, avro_record(*fields), writes(spec("p")))


@pytest.mark.parametrize(
    ("datatype", "kind"),
    [(Datatype.FP64, "float"), (Datatype.INT64, "int"), (Datatype.UINT32, "int"),
     (Datatype.INT8, "float"), (Datatype.BOOL, "int")],
)  # fmt: skip
def test_type_that_cannot_hold_all_values_is_refused(
    tmp_path: Path, datatype: Datatype, kind: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"'p' is {datatype}"):
        of_file(tmp_path, avro_record(("p", kind)), writes(spec("p", datatype)))


def test_file_that_is_no_schema_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.avsc"
    file.write_text("{")

    with pytest.raises(InvalidArgumentError, match=r"schema_file: '.*bad\.avsc': the Avro schema"):
        open_format(avro, settings(FormatKind.AVRO, schema_file=str(file)), reads(spec("x")))
