"""Values of Feast's become records, or are told to be damaged; no bytes do anything else."""

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype
from headrace.features import Feature
from headrace.features.feast.values import (
    DAMAGED,
    RecordWriter,
    WrongValueError,
    read_time_us,
    read_value,
)
from headrace.features.records import RecordLayout, ValueColumn, objects
from tests.unit.features.tables import view

KINDS = {
    "f32": Datatype.FP32,
    "f64": Datatype.FP64,
    "i": Datatype.INT64,
    "b": Datatype.BOOL,
    "s": Datatype.BYTES,
    "t": Datatype.BYTES,
}
VIEW = view(Path("x"), *(Feature(name=name, datatype=kind) for name, kind in KINDS.items()))
LAYOUT = RecordLayout(VIEW)
WRITER = RecordWriter(LAYOUT, list(KINDS.values()))


def _value_class() -> Any:  # noqa: ANN401  # protobuf makes it at run time
    """Feast's `Value`, of its single values, as protobuf itself reads and writes it."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="v.proto", package="v", syntax="proto3")
    made = file.message_type.add(name="Value")
    made.oneof_decl.add(name="val")
    for number, name, kind in (
        (1, "bytes_val", field.TYPE_BYTES),
        (2, "string_val", field.TYPE_STRING),
        (3, "int32_val", field.TYPE_INT32),
        (4, "int64_val", field.TYPE_INT64),
        (5, "double_val", field.TYPE_DOUBLE),
        (6, "float_val", field.TYPE_FLOAT),
        (7, "bool_val", field.TYPE_BOOL),
        (19, "null_val", field.TYPE_INT32),
    ):
        made.field.add(name=name, number=number, type=kind, label=1, oneof_index=0)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("v.Value"))


MESSAGE = _value_class()
ANY = frozenset(range(256))


def said(**value: object) -> bytes:
    return bytes(MESSAGE(**value).SerializeToString())


@pytest.mark.slow
@given(
    st.one_of(
        st.tuples(st.just("bytes_val"), st.binary()),
        st.tuples(st.just("string_val"), st.text()),
        st.tuples(st.just("int32_val"), st.integers(-(1 << 31), (1 << 31) - 1)),
        st.tuples(st.just("int64_val"), st.integers(-(1 << 63), (1 << 63) - 1)),
        st.tuples(st.just("double_val"), st.floats()),
        st.tuples(st.just("float_val"), st.floats(width=32)),
        st.tuples(st.just("bool_val"), st.booleans()),
    )
)
def test_what_protobuf_writes_is_read(value: tuple[str, object]) -> None:
    name, wanted = value

    found = read_value(said(**{name: wanted}), ANY)

    if isinstance(wanted, str):
        wanted = wanted.encode()
    if isinstance(wanted, float):
        assert isinstance(found, float)
        assert struct.pack("<d", found) == struct.pack("<d", wanted)
    else:
        assert found == wanted
        assert type(found) is type(wanted)


@pytest.mark.slow
@given(st.integers(-62_135_596_800, 253_402_300_799), st.integers(0, 999_999_999))
def test_a_timestamp_is_read_to_the_microsecond(seconds: int, nanos: int) -> None:
    data = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos).SerializeToString()

    assert read_time_us(data) == seconds * 1_000_000 + nanos // 1000


def test_a_row_becomes_the_record_that_encoding_makes() -> None:
    values = [
        said(float_val=0.5),
        said(double_val=-0.0),
        said(int32_val=-3),
        said(bool_val=True),
        said(string_val="é"),
        said(bytes_val=b"\xff\0"),
    ]
    columns = [
        ValueColumn(values=np.array([one]), is_present=np.array([True]))
        for one in (np.float32(0.5), -0.0, -3, True)
    ]
    columns += [
        ValueColumn(values=objects([one]), is_present=np.array([True]))
        for one in ("é".encode(), b"\xff\0")
    ]

    assert WRITER.write(7, values) == LAYOUT.encode(np.array([7]), columns)[0]


@pytest.mark.slow
@given(
    st.lists(
        st.one_of(
            st.floats(width=32).map(lambda value: said(float_val=value)),
            st.none(),
            st.just(b""),
            st.just(said(null_val=0)),
            st.just(said(double_val=1.0)),
            st.binary(max_size=9),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_row_of_floats_is_read_at_once_as_one_by_one(values: list[bytes | None]) -> None:
    kinds = [Datatype.FP32] * len(values)
    of = view(Path("x"), *(Feature(name=f"f{i}", datatype=kind) for i, kind in enumerate(kinds)))
    at_once = RecordWriter(RecordLayout(of), kinds)
    one_by_one = RecordWriter(RecordLayout(of), kinds)
    one_by_one._floats = None

    assert at_once.write(7, values) == one_by_one.write(7, values)


@pytest.mark.parametrize("nothing", [None, b"", said(null_val=0)])
def test_what_is_not_there_is_missing(nothing: bytes | None) -> None:
    decoded = LAYOUT.decode([WRITER.write(7, [nothing] * len(KINDS))])

    assert decoded.is_present.tolist() == [[False] * len(KINDS)]
    assert decoded.event_us.tolist() == [7]


@pytest.mark.parametrize(
    "value",
    [
        said(string_val="0.5"),  # another type
        said(double_val=0.5),  # which would lose digits
        said(float_val=0.5)[:-1],
        said(float_val=0.5) + b"\0",
        b"\x22\x02\x08\x01",  # a message inside
        b"\x35",
    ],
)
def test_what_is_no_value_of_the_features_type_is_damaged(value: bytes) -> None:
    record = WRITER.write(7, [value, *[None] * 5])

    assert record == DAMAGED
    assert LAYOUT.decode([record]).reasons == {0: "the stored record is damaged"}


@pytest.mark.slow
@given(st.binary(min_size=1, max_size=30))
def test_any_bytes_are_a_value_or_damaged(data: bytes) -> None:
    for fitting in (ANY, frozenset({data[0]})):
        try:
            value = read_value(data, fitting)
        except (WrongValueError, struct.error, IndexError):
            continue
        assert value is None or isinstance(value, bool | int | float | bytes)
    with contextlib.suppress(WrongValueError):
        assert isinstance(read_time_us(data), int)
    record = WRITER.write(7, [None, None, data, None, data, None])
    assert record == DAMAGED or LAYOUT.decode([record]).rows.tolist() == [0]
