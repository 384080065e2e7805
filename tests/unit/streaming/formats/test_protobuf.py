"""Protobuf messages become columns, and columns Protobuf messages."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from headrace.core import (
    Datatype,
    InvalidArgumentError,
)
from headrace.core.spec.stream_parts import FormatKind
from headrace.streaming.formats import FieldLayout, FieldSpec
from headrace.streaming.formats.proto_rows import from_descriptor
from headrace.streaming.formats.registry import message_head
from tests.schema_registries import Registry
from tests.unit.streaming.formats.rows import (
    add_fields,
    array,
    descriptor_set,
    opened,
    proto,
    reads,
    record,
    serialized,
    spec,
    writes,
)

SHOP = proto(
    "shop",
    imports=["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"],
    Click=[
        "float x",
        "repeated float vector",
        "string id",
        "optional double maybe",
        "User user",
        "google.protobuf.Timestamp when",
        "google.protobuf.DoubleValue boxed",
        "Kind kind",
        "repeated Kind kinds",
        "repeated CountsEntry counts",
        "bytes raw",
        "repeated User friends",
        "int64 big",
        "bool flag",
    ],
    Other=["string far = 99", "float x = 1"],
)
for _name, _fields in {
    "User": ["int32 age", "User boss"],
    "CountsEntry": ["string key", "int64 value"],
}.items():
    add_fields(SHOP.message_type[0].nested_type.add(name=_name), _fields)
SHOP.message_type[0].nested_type[1].options.map_entry = True
_kind = SHOP.message_type[0].enum_type.add(name="Kind")
_kind.value.add(name="NONE", number=0)
_kind.value.add(name="SOME", number=1)
FILE = from_descriptor(SHOP)
CLICK = GetMessageClass(FILE.at((0,)))
OTHER = GetMessageClass(FILE.at((1,)))


def of_file(path: Path, file: Any, layout: FieldLayout, **options: Any) -> Any:  # noqa: ANN401  # as they are
    target = path / "schema.pb"
    target.write_bytes(file if isinstance(file, bytes) else descriptor_set(file))
    return opened(FormatKind.PROTOBUF, layout, descriptor_file=str(target), **options)


def click(number: int, **fields: Any) -> bytes:  # noqa: ANN401  # as they are
    head = message_head(number, (0,))
    value: bytes = CLICK(**fields).SerializeToString()
    return head + value


def test_bad_messages_cost_themselves_only() -> None:
    registry = Registry()
    number = registry.add("in-value", serialized(SHOP), schemaType="PROTOBUF")
    broken = registry.add("bad-value", "message {", schemaType="PROTOBUF")
    first = message_head(number, (0,))
    deep = b"\x0b" * 500 + b"\x0c" * 500  # groups in groups
    bad = {
        message_head(number, (1,)) + OTHER(x=1).SerializeToString(): "it is a shop.Other, but",
        message_head(number, (1, 3)): "lead to no message",
        click(broken): "protoc --include_imports --descriptor_set_out=schema.pb",
        first + OTHER(far="away").SerializeToString(): "only unknown ones; is it another message?",
        first + deep: "not readable as Protobuf message shop.Click",
        b"\0\0\0\0\1\xff": "message indexes",
    }
    good = click(number, x=0.5)
    read = opened(FormatKind.PROTOBUF, reads(spec("x")), registry, message="shop.Click")

    found = read.decode([record(value) for value in (good, *bad, good)])

    assert found.columns == {"x": [0.5, 0.5]}
    assert sorted(found.errors) == list(range(1, 7))
    for at, why in enumerate(bad.values(), start=1):
        assert why in str(found.errors[at])


@pytest.mark.parametrize("path", [(0,), (1,), (0, 0), (0, 1)])
def test_message_has_the_path_at_which_it_is(path: tuple[int, ...]) -> None:
    assert FILE.path_of(FILE.at(path)) == path


def test_kinds_of_values_are_read_as_models_take_them(tmp_path: Path) -> None:
    value = CLICK(
        x=0.5, vector=[1, 2, 3, 4], id="a", user={"age": 40},
        when={"seconds": 5, "nanos": 500000000}, boxed={"value": 2.5}, kind=1,
        kinds=[0, 1, 7], raw=b"\0\xff", big=1 << 62, flag=True,
    ).SerializeToString()  # fmt: skip
    layout = reads(
        spec("x"),
        spec("vector", Datatype.FP32, -1, 2),
        spec("maybe"),
        spec("user.age", Datatype.INT32),
        spec("user.boss.age", Datatype.INT32),
        spec("when", Datatype.FP64),
        spec("boxed"),
        spec("kind", Datatype.INT32),
        spec("kinds", Datatype.BYTES, -1),
        spec("raw", Datatype.BYTES),
        spec("big", Datatype.INT64),
        spec("flag", Datatype.BOOL),
        passed=["id", "user.boss.boss.age"],
    )
    read = of_file(tmp_path, SHOP, layout, message="shop.Click")

    found = read.decode([record(value), record(b"")])

    assert {name: column[0] for name, column in found.columns.items()} == {
        "x": 0.5, "vector": [[1.0, 2.0], [3.0, 4.0]], "maybe": None, "user.age": 40,
        "user.boss.age": None, "when": 5.5, "boxed": 2.5, "kind": 1, "kinds": ["NONE", "SOME", "7"],
        "raw": b"\0\xff", "big": 1 << 62, "flag": True, "id": "a", "user.boss.boss.age": None,
    }  # fmt: skip
    assert found.columns["vector"][1] == []
    assert found.columns["boxed"][1] is None
    assert found.errors == {}


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (spec("nothing"), "no field 'nothing'"),
        (spec("x.y"), "no field 'x.y'"),
        (spec("friends.age"), "no field 'friends.age'"),
        (spec("vector", Datatype.FP32, -1, -1), "does not tell the shape"),
        (spec("user"), r"is a message \(shop.Click.User\).*name a field of it, such as age, boss"),
        (spec("friends"), "is a message"),
        (spec("counts"), "is a map"),
    ],
)
def test_field_that_is_no_value_is_refused(tmp_path: Path, field: FieldSpec, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        of_file(tmp_path, SHOP, reads(field), message="shop.Click")


def test_registry_that_gives_descriptors_needs_no_text() -> None:
    registry = Registry()
    registry.add("user", "user text", schemaType="PROTOBUF")
    more = [{"name": "user.proto", "subject": "user", "version": 1}]
    number = registry.add("in-value", "text", schemaType="PROTOBUF", references=more)
    registry.descriptors = {
        "user text": proto("u", User=["int32 age"]).SerializeToString(),
        "text": proto(imports=["user.proto"], M=[".u.User u"]).SerializeToString(),
    }
    read = opened(FormatKind.PROTOBUF, reads(spec("u.age", Datatype.INT32)), registry)

    found = read.decode([record(message_head(number, (0,)) + b"\x0a\x02\x08\x07")])

    assert (found.columns, found.errors) == ({"u.age": [7]}, {})


def test_registry_that_gives_text_is_refused_unless_a_descriptor_set_is_given(
    tmp_path: Path,
) -> None:
    registry = Registry(knows_no_format=True)
    number = registry.add("in-value", "message M { float x = 1; }", schemaType="PROTOBUF")
    value = record(message_head(number, (0,)) + b"\x0d\0\0\0\x3f")
    file = tmp_path / "schema.pb"
    file.write_bytes(descriptor_set(proto(M=["float x"])))

    layout, kind = reads(spec("x")), FormatKind.PROTOBUF

    refused = opened(kind, layout, registry).decode([value])
    found = opened(kind, layout, registry, descriptor_file=str(file)).decode([value])

    assert "protoc --include_imports --descriptor_set_out=schema.pb" in str(refused.errors[0])
    assert (found.columns, found.errors) == ({"x": [0.5]}, {})


def test_text_of_a_proto_file_is_refused_with_the_command_that_compiles_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"buf build -o schema\.pb.*descriptor_file"):
        opened(FormatKind.PROTOBUF, reads(spec("x")), schema_file=str(tmp_path / "a.proto"))


def test_files_that_import_each_other_are_refused() -> None:
    registry = Registry()
    for name, other in (("a", "b"), ("b", "a")):
        more = [{"name": f"{other}.proto", "subject": other, "version": 1}]
        file = proto(imports=[f"{other}.proto"])
        file.message_type.add(name=f"M{name}")
        registry.add(name, serialized(file), schemaType="PROTOBUF", references=more)
    read = opened(FormatKind.PROTOBUF, reads(spec("x")), registry)

    found = read.decode([record(message_head(1, (0,)))])

    assert "imports itself" in str(found.errors[0])


@pytest.mark.parametrize("text", ["CgNhYmM", "/////w==", "AAAA"])
def test_descriptor_that_is_none_is_refused(text: str) -> None:
    registry = Registry()
    number = registry.add("in-value", text, schemaType="PROTOBUF")
    read = opened(FormatKind.PROTOBUF, reads(spec("x")), registry)

    found = read.decode([record(message_head(number, (0,)))])

    assert f"schema {number} of the registry" in str(found.errors[0])


def test_descriptor_file_says_how_records_are_read(tmp_path: Path) -> None:
    content = descriptor_set(SHOP, proto(name="alone.proto", Alone=[]))
    layout = reads(spec("x"))
    plain = of_file(tmp_path, content, layout, message="shop.Other")
    framed = of_file(tmp_path, content, layout, message="shop.Other", registry=Registry())
    value = OTHER(x=0.5).SerializeToString()

    assert plain.decode([record(value)]).columns == {"x": [0.5]}
    assert framed.decode([record(message_head(9, (1,)) + value)]).columns == {"x": [0.5]}


@pytest.mark.parametrize(
    ("content", "message", "why"),
    [
        (b"\xff", "", "no FileDescriptorSet"),
        (b"", "", "the schema has: no messages"),
        (descriptor_set(SHOP), "", "name options.message; the schema has: shop.Click"),
        (descriptor_set(SHOP), "shop.Nothing", "no message 'shop.Nothing'"),
        (descriptor_set(SHOP), "shop.Click.Nothing", "no message 'shop.Click.N"),
    ],
    ids=range(5),
)
def test_descriptor_file_without_the_message_is_refused(
    tmp_path: Path, content: bytes, message: str, why: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        of_file(tmp_path, content, reads(spec("x")), message=message)


def test_type_of_what_is_passed_on_has_to_be_known() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'id' .* name it in options\.types"):
        opened(FormatKind.PROTOBUF, writes(spec("p"), answered=["id"]))


def test_newest_schema_of_the_subject_is_written_if_none_is_given() -> None:
    registry = Registry()
    number = registry.add("out-value", serialized(SHOP), schemaType="PROTOBUF")
    layout = writes(spec("p", Datatype.FP32, 1), spec("k", Datatype.BYTES), answered=["raw"])
    options = {"subject": "out-value", "message": "shop.Click"}
    names = {"p": "maybe", "k": "kind"}
    write = opened(FormatKind.PROTOBUF, layout, registry, names=names, **options)

    columns = {"p": array([[0.5]], Datatype.FP32), "k": array([b"SOME"], Datatype.BYTES)}
    (value,) = write.encode(columns | {"raw": [b"\xff"]}, 1)

    assert value == click(number, maybe=0.5, kind=1, raw=b"\xff")


@pytest.mark.parametrize(
    ("datatype", "shape", "field", "why"),
    [
        (Datatype.FP32, (), "double q", "has no 'p', only: q"),
        (Datatype.FP64, (), "float p", "is FP64, which 'A.p' cannot hold"),
        (Datatype.INT64, (), "int32 p", "cannot hold"),
        (Datatype.UINT32, (), "int32 p", "cannot hold"),
        (Datatype.BYTES, (), "int32 p", "cannot hold"),
        (Datatype.FP32, (), "A p", "cannot hold"),
        (Datatype.FP32, (2,), "float p", "'A.p' is one value"),
        (Datatype.FP32, (), "repeated float p", "'A.p' is repeated"),
        (Datatype.FP32, (-1, -1), "repeated float p", "a flat list does not tell"),
    ],
)
def test_message_that_answers_do_not_fit_is_refused_at_the_start(
    tmp_path: Path, datatype: Datatype, shape: tuple[int, ...], field: str, why: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        of_file(tmp_path, proto(A=[field]), writes(spec("p", datatype, *shape)))


def test_required_field_that_answers_do_not_have_is_refused(tmp_path: Path) -> None:
    file = proto(syntax="proto2", A=["required float p", "required float q"])

    with pytest.raises(InvalidArgumentError, match="needs 'q', which answers do not have"):
        of_file(tmp_path, file, writes(spec("p")))
