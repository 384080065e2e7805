"""Avro records become columns, and columns Avro records."""

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

from headrace.core import (
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
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


def test_fields_are_read_by_name_with_the_schema_of_each_record() -> None:
    registry = Registry()
    old = avro_record(("x", "float"), ("id", "string"))
    new = avro_record(("id", "string"), ("more", "long"), ("x", "double"))
    values = [
        avro_bytes(old, {"x": 0.5, "id": "a"}, head(registry.add("in-value", old))),
        avro_bytes(new, {"x": 1.5, "id": "b", "more": 3}, head(registry.add("in-value", new))),
        avro_bytes(old, {"x": 2.5, "id": "c"}, head(1)),
    ]
    read = of_registry(registry, reads(spec("x"), passed=["id"]))

    found = read.decode([record(value) for value in values])

    assert found.errors == {}
    assert found.columns == {"x": [0.5, 1.5, 2.5], "id": ["a", "b", "c"]}


def test_bad_records_cost_themselves_only() -> None:
    registry = Registry()
    schema = avro_record(("x", "float"))
    other = avro_record(("y", "float"))
    good = avro_bytes(schema, {"x": 0.5}, head(registry.add("in-value", schema)))
    lacking = avro_bytes(other, {"y": 0.5}, head(registry.add("other-value", other)))
    proto = head(registry.add("proto-value", "x", schemaType="PROTOBUF"))
    values = [good, None, b"{}", good[:-1], good + b"!", head(99), lacking, proto, lacking, good]
    read = of_registry(registry, reads(spec("x")))

    found = read.decode([record(value) for value in values])

    assert found.columns == {"x": [0.5, 0.5]}
    texts = {at: str(error) for at, error in found.errors.items()}
    assert sorted(texts) == [1, 2, 3, 4, 5, 6, 7, 8]
    for at, why in (
        (1, "tombstone"),
        (2, "too short"),
        (3, "it ends too early"),
        (4, "1 bytes are left over"),
        (5, "/schemas/ids/99"),
        (6, "schema 2 of the registry: the record's schema has no field 'x'"),
        (7, "it is PROTOBUF, not AVRO"),
        (8, "no field 'x'"),
    ):
        assert why in texts[at]


def test_records_wait_for_a_registry_that_is_away() -> None:
    registry = Registry()
    schema = avro_record(("x", "float"))
    value = avro_bytes(schema, {"x": 0.5}, head(registry.add("in-value", schema)))
    read = of_registry(registry, reads(spec("x")))
    registry.instead = lambda: (503, b"")

    with pytest.raises(UnavailableError):
        read.decode([record(value)])
    registry.instead = lambda: None

    assert read.decode([record(value)]).columns == {"x": [0.5]}


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


def test_schemas_that_refer_to_others_are_read_whole() -> None:
    registry = Registry()
    registry.add("user", avro_record(("age", "int"), name="com.example.User"))
    more = [{"name": "com.example.User", "subject": "user", "version": 1}]
    schema = avro_record(("a", "com.example.User"), ("b", ["null", "com.example.User"]))
    number = registry.add("in-value", schema, references=more)
    read = of_registry(registry, reads(spec("a.age", Datatype.INT32), passed=["b.age"]))

    found = read.decode([record(head(number) + b"\x04\x02\x06")])

    assert (found.columns, found.errors) == ({"a.age": [2], "b.age": [3]}, {})


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


def test_answers_have_a_schema_made_of_the_outputs() -> None:
    registry = Registry()
    layout = writes(
        spec("probabilities", Datatype.FP32, 2),
        spec("dense/BiasAdd:0", Datatype.INT64),
        spec("label", Datatype.BYTES),
        answered=["user.id", "when"],
    )
    write = of_registry(
        registry, layout, subject="out-value", register=True, types={"when": "INT64"}
    )

    values = write.encode(
        {
            "probabilities": array([[0.25, 0.75], [1, 0]], Datatype.FP32),
            "dense/BiasAdd:0": array([1, 2], Datatype.INT64),
            "label": array([b"yes", b"n\xc3\xb6"], Datatype.BYTES),
            "user.id": ["a", 7],
            "when": [None, 5],
        },
        2,
    )

    text = registry.schemas[0]["schema"]
    assert [value[:5] for value in values] == [head(1)] * 2
    assert [read_back(text, value[5:]) for value in values] == [
        {"user_id": "a", "when": None, "probabilities": [0.25, 0.75], "dense_BiasAdd_0": 1,
         "label": "yes"},
        {"user_id": 7, "when": 5, "probabilities": [1.0, 0.0], "dense_BiasAdd_0": 2,
         "label": "nö"},
    ]  # fmt: skip
    assert registry.subjects == {"out-value": [1]}


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


def test_schema_that_is_not_there_is_not_registered_unasked(tmp_path: Path) -> None:
    registry = Registry()
    file = tmp_path / "out.avsc"
    file.write_text(json.dumps(avro_record(("p", "float"))))

    for options in ({}, {"schema_file": str(file)}):
        with pytest.raises(FailedPreconditionError, match=r"set options\.register to true"):
            of_registry(registry, writes(spec("p")), subject="out-value", **options)

    assert registry.schemas == []


def test_answers_wait_for_a_registry_that_is_away_at_the_start() -> None:
    registry = Registry(instead=lambda: (503, b""))
    write = of_registry(registry, writes(spec("p")), subject="out-value")
    columns = {"p": array([0.5], Datatype.FP32)}

    with pytest.raises(UnavailableError):
        write.encode(columns, 1)
    registry.instead = lambda: None
    with pytest.raises(UnavailableError, match="register the answers' schema"):
        write.encode(columns, 1)
    registry.add("out-value", avro_record(("p", "float")))
    waiting = open_format(
        avro,
        settings(FormatKind.AVRO, registry=URL, subject="out-value"),
        writes(spec("p")),
        client(registry),
    )

    assert waiting.encode(columns, 1) == [
        avro_bytes(avro_record(("p", "float")), {"p": 0.5}, head(1))
    ]


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


def test_answer_that_is_not_as_the_schema_says_is_refused(tmp_path: Path) -> None:
    schema = avro_record(("id", "string"), ("p", "float"))
    write = of_file(tmp_path, schema, writes(spec("p"), answered=["id"]))

    with pytest.raises(InvalidArgumentError, match="not as its Avro schema says"):
        write.encode({"id": [{"a": 1}], "p": array([0.5], Datatype.FP32)}, 1)


def test_two_answers_are_not_called_the_same() -> None:
    with pytest.raises(InvalidArgumentError, match=r"both 'a\.b' and 'a/b' 'a_b'"):
        open_format(avro, settings(FormatKind.AVRO), writes(spec("a.b"), spec("a/b")))


def test_schema_is_needed_to_read_and_a_subject_to_write() -> None:
    with pytest.raises(InvalidArgumentError, match=r"options\.registry or options\.schema_file"):
        open_format(avro, settings(FormatKind.AVRO), reads(spec("x")))
    with pytest.raises(InvalidArgumentError, match=r"options\.subject"):
        of_registry(Registry(), writes(spec("x")))


def test_file_that_is_no_schema_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.avsc"
    file.write_text("{")

    with pytest.raises(InvalidArgumentError, match=r"schema_file: '.*bad\.avsc': the Avro schema"):
        open_format(avro, settings(FormatKind.AVRO, schema_file=str(file)), reads(spec("x")))
