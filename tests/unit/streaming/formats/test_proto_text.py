"""A .proto file's text becomes what protoc makes of it."""

from importlib.resources import files
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.streaming.formats.proto_descriptors import from_text, message_class
from headrace.streaming.formats.proto_text import parse_proto

ODD = r"""
// comment ; {
syntax = "proto2"; /* block { ; */
package a.b;
import public "google/protobuf/timestamp.proto";
import "somewhere/options.proto";
option java_package = "x;y{";
option (my.option) = { list: [ { a: 1 } ] };
message Outer {
  option deprecated = false;
  required int32 a = 1 [deprecated = true, default = -5];
  optional string s = 2 [default = "x\"y;]z", (my.opt) = {default: 1}];
  repeated sint64 packed = 0x3 [packed = true];
  optional float f = 4 [default = -inf];
  optional double g = 5 [default = 1e-3];
  map < string , Inner > m_any_thing = 6;
  message Inner { optional .a.b.Outer.Kind k = 1 [default = TWO]; optional Kind k2 = 2;
     message Deep { optional Outer o = 1; } optional Deep d = 3; }
  enum Kind { option allow_alias = true; ONE = 1; UNO = 1; TWO = 2 [deprecated = true]; NEG = -1;
     reserved 10 to 12; };
  oneof choice { string x = 7; Inner.Deep y = 8; option (o) = 1; }
  reserved 100 to 200, 300; reserved "foo", 'bar';
  extensions 1000 to max;
  optional google.protobuf.Timestamp t = 9;
  optional bool message = 11 [default = true];
  optional int64 big = 077 [default = 0x7fffffffffffffff];
  extend Outer { optional int32 within = 1002; }
}
extend Outer { optional int32 ext = 1001; }
service S { rpc Do(Outer) returns (stream Outer) { option (x) = { get: "/v1/{name}" }; } }
message Last { optional Outer.Inner i = 1; }
"""


def plain(file: Any) -> Any:  # noqa: ANN401  # protobuf ships no types
    """A descriptor without what reading messages does not need."""
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    del copy.dependency[:], copy.service[:]
    copy.ClearField("options")
    copy.name = ""
    for message in copy.message_type:
        _strip(message)
    return copy


def _strip(message: Any) -> None:  # noqa: ANN401  # as above
    for field in message.field:
        field.ClearField("json_name")
        field.ClearField("options")
    for inner in message.nested_type:
        _strip(inner)


@pytest.mark.parametrize("name", ["oip", "rls"])
def test_files_are_read_as_protoc_reads_them(name: str) -> None:
    folder = files("headrace.protocol")
    text = (folder / f"{name}.proto").read_text()
    of_protoc = descriptor_pb2.FileDescriptorSet.FromString((folder / f"{name}.pb").read_bytes())
    made = from_text(text)

    found = plain(made.pool.FindFileByName(made.file.name))

    pool = type(made.pool)()
    for one in of_protoc.file:
        pool.Add(one)
    wanted = next(one for one in of_protoc.file if one.package == found.package)
    assert found == plain(pool.FindFileByName(wanted.name))
    assert found.message_type


def test_odd_file_is_read() -> None:
    made = from_text(ODD)

    outer = made.pool.FindMessageTypeByName("a.b.Outer")
    fields = outer.fields_by_name
    assert made.names() == ["a.b.Outer", "a.b.Last"]
    assert {name: one.default_value for name, one in fields.items() if one.has_default_value} == {
        "a": -5,
        "s": 'x"y;]z',
        "f": float("-inf"),
        "g": 0.001,
        "message": True,
        "big": 0x7FFFFFFFFFFFFFFF,
    }
    assert fields["big"].number == 0o77
    assert fields["y"].containing_oneof.name == "choice"
    assert fields["m_any_thing"].message_type.full_name == "a.b.Outer.MAnyThingEntry"
    assert fields["t"].message_type.full_name == "google.protobuf.Timestamp"
    assert made.path_of("a.b.Outer.Inner.Deep") == (0, 1, 0)
    assert made.at((0, 1, 0)).full_name == "a.b.Outer.Inner.Deep"
    kinds = outer.enum_types_by_name["Kind"].values_by_name
    assert {name: one.number for name, one in kinds.items()} == {
        "ONE": 1, "UNO": 1, "TWO": 2, "NEG": -1,
    }  # fmt: skip


def test_optional_fields_of_proto3_know_whether_they_are_there() -> None:
    made = from_text('syntax = "proto3"; message M { optional int32 a = 1; int32 b = 2; }')
    kind = message_class(made.at((0,)))

    assert kind(a=0).HasField("a")
    assert not kind().HasField("a")
    assert not made.at((0,)).fields_by_name["b"].has_presence


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("message M { int32 a = 1; ", "ends too early"),
        ("message M { int32 a 1; }", "'=' is expected, not '1'"),
        ("message M { int32 a = x; }", "a number is expected"),
        ("message M { int32 a = 0; }", "no field's number"),
        ("message M { int32 a = 99999999999; }", "too large"),
        ("message M {\n  optional group G = 1 { } }", "line 2: groups are not supported"),
        ('edition = "2023";', "editions are not supported"),
        ('syntax = "proto4";', "'proto4' is not known"),
        ("import foo;", "a text in quotes"),
        ("message M { int32 a = 1 }", "'}' is not expected after a field"),
        ("message M { \x00 }", "line 1"),
        ("/* never closed", "line 1"),
        ("message M {" * 40, "nested too deep"),
        ("option x = {" * 9000, "ends too early"),
        ("message M { Missing a = 1; }", "cannot be used: .*give options.descriptor_file"),
        ('import "b.proto"; message M { B a = 1; }', "imports b.proto, which is not there"),
        ("message M { int32 a = 1; int32 a = 2; }", "cannot be used"),
        ("message M { int32 a = 1 [default = x]; }", "cannot be used"),
    ],
)
def test_text_that_is_no_proto_file_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        from_text(text)


@pytest.mark.slow
@given(
    cut=st.integers(0, len(ODD)),
    length=st.integers(0, 9),
    put=st.sampled_from(["", "{", "}", ";", "[", "(", "=", "0", '"', "map<", "oneof ", "-", "\\"]),
)
def test_damaged_text_is_read_or_refused(cut: int, length: int, put: str) -> None:
    text = ODD[:cut] + put + ODD[cut + length :]

    try:
        made = parse_proto(text, "a.proto")
        from_text(text)
    except InvalidArgumentError as error:
        assert "Protobuf" in str(error) or ".proto" in str(error)  # noqa: PT017  # either is fine
    else:
        assert made.name == "a.proto"
