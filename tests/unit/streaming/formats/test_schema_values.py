"""Formats with fields: tensors come back, and Avro and Protobuf use schemas alike."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    TensorSpec,
    UnavailableError,
)
from headrace.core.spec.stream_parts import FormatKind
from headrace.protocol.inputs import ModelInputs
from headrace.streaming.codec import AnswerFields, FieldCodec, InputSource
from headrace.streaming.formats import FieldSpec
from headrace.streaming.formats.proto_rows import from_descriptor
from headrace.streaming.formats.registry import head, message_head
from tests.schema_registries import Registry
from tests.unit.streaming.formats.rows import (
    MODULES,
    array,
    avro_bytes,
    avro_record,
    descriptor_set,
    opened,
    proto,
    reads,
    record,
    serialized,
    spec,
    writes,
)

both = pytest.mark.parametrize("kind", [FormatKind.AVRO, FormatKind.PROTOBUF])


class Producer:
    """Another program that writes records with these fields; their types have one name in both."""

    def __init__(self, kind: FormatKind, **fields: str) -> None:
        self.kind = kind
        self.avro = avro_record(*fields.items())
        self.proto = proto(M=[f"{kind} {name}" for name, kind in fields.items()])

    def register(self, registry: Registry, subject: str = "in-value") -> int:
        if self.kind is FormatKind.AVRO:
            return registry.add(subject, self.avro)
        return registry.add(subject, serialized(self.proto), schemaType="PROTOBUF")

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the schema to a file, and return the option that names it."""
        path = folder / "schema"
        if self.kind is FormatKind.AVRO:
            path.write_text(json.dumps(self.avro))
            return {"schema_file": str(path)}
        path.write_bytes(descriptor_set(self.proto))
        return {"descriptor_file": str(path)}

    def value(self, number: int, row: Mapping[str, object]) -> bytes:
        if self.kind is FormatKind.AVRO:
            return avro_bytes(self.avro, row, head(number))
        message = GetMessageClass(from_descriptor(self.proto).at((0,)))(**row)
        return message_head(number, (0,)) + bytes(message.SerializeToString())


@both
def test_fields_are_read_by_name_with_the_schema_of_each_record(kind: FormatKind) -> None:
    registry = Registry()
    old = Producer(kind, x="float", id="string")
    new = Producer(kind, id="string", more="bytes", x="double")
    first, second = old.register(registry), new.register(registry)
    values = [
        old.value(first, {"x": 0.5, "id": "a"}),
        new.value(second, {"x": 1.5, "id": "b", "more": b"3"}),
        old.value(first, {"x": 2.5, "id": "c"}),
    ]

    found = opened(kind, reads(spec("x"), passed=["id"]), registry).decode(
        [record(value) for value in values]
    )

    assert found.errors == {}
    assert found.columns == {"x": [0.5, 1.5, 2.5], "id": ["a", "b", "c"]}


@both
def test_bad_records_cost_themselves_only(kind: FormatKind) -> None:
    registry = Registry()
    other = FormatKind.PROTOBUF if kind is FormatKind.AVRO else FormatKind.AVRO
    producer, lacking = Producer(kind, x="float"), Producer(kind, y="float")
    good = producer.value(producer.register(registry), {"x": 0.5})
    bad = lacking.value(lacking.register(registry), {"y": 0.5})
    foreign = producer.value(Producer(other, x="float").register(registry, "other"), {"x": 0.5})
    unknown = producer.value(99, {"x": 0.5})
    values = [good, None, b"{}", good[:-1], unknown, bad, foreign, bad, good + b"!", good]

    found = opened(kind, reads(spec("x")), registry).decode([record(value) for value in values])

    assert found.columns == {"x": [0.5, 0.5]}
    texts = {at: str(error) for at, error in found.errors.items()}
    assert sorted(texts) == list(range(1, 9))
    for at, why in (
        (1, "tombstone"),
        (2, "too short"),
        (3, "it ends too early" if kind is FormatKind.AVRO else "not readable as Protobuf"),
        (4, "/schemas/ids/99"),
        (5, "schema 2 of the registry: the "),
        (6, f"it is {other.upper()}, not {kind.upper()}"),
        (7, "no field 'x'"),
        (8, "1 bytes are left over" if kind is FormatKind.AVRO else "not readable as Protobuf"),
    ):
        assert why in texts[at]


@both
def test_answers_have_a_schema_made_of_the_outputs(kind: FormatKind) -> None:
    registry = Registry()
    layout = writes(
        spec("p", Datatype.FP32, 2),
        spec("matrix", Datatype.INT64, 2, -1),
        spec("dense/BiasAdd:0", Datatype.INT64),
        spec("label", Datatype.BYTES),
        answered=["user.id"],
    )
    types = {"user.id": "INT64"}
    write = opened(kind, layout, registry, subject="out-value", register=True, types=types)

    values = write.encode(
        {
            "p": array([[0.25, 0.75], [1, 0]], Datatype.FP32),
            "matrix": array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], Datatype.INT64),
            "dense/BiasAdd:0": array([1, 2], Datatype.INT64),
            "label": array([b"yes", b"n\xc3\xb6"], Datatype.BYTES),
            "user.id": [7, None],
        },
        2,
    )
    names = ["p", "dense_BiasAdd_0", "label", "user_id"]
    read = opened(kind, reads(spec("matrix", Datatype.INT64, 2, -1), passed=names), registry)
    found = read.decode([record(value) for value in values])

    assert registry.subjects == {"out-value": [1]}
    begin = head(1) if kind is FormatKind.AVRO else message_head(1, (0,))
    assert [value[: len(begin)] for value in values] == [begin] * 2
    assert found.columns == {
        "p": [[0.25, 0.75], [1.0, 0.0]],
        "matrix": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        "dense_BiasAdd_0": [1, 2],
        "label": ["yes", "nö"],
        "user_id": [7, None],
    }


@both
def test_schema_that_is_not_there_is_not_registered_unasked(
    tmp_path: Path, kind: FormatKind
) -> None:
    registry = Registry()

    for options in ({}, Producer(kind, p="float").save(tmp_path)):
        with pytest.raises(FailedPreconditionError, match=r"set options\.register to true"):
            opened(kind, writes(spec("p")), registry, subject="out-value", **options)

    assert registry.schemas == []


@both
def test_answers_wait_for_a_registry_that_is_away_at_the_start(kind: FormatKind) -> None:
    registry = Registry(instead=lambda: (503, b""))
    write = opened(kind, writes(spec("p")), registry, subject="out-value")
    columns = {"p": array([0.5], Datatype.FP32)}
    producer = Producer(kind, p="float")

    with pytest.raises(UnavailableError):
        write.encode(columns, 1)
    registry.instead = lambda: None
    with pytest.raises(UnavailableError, match="register the answers' schema"):
        write.encode(columns, 1)
    number = producer.register(registry, "out-value")
    waiting = opened(kind, writes(spec("p")), registry, subject="out-value")

    assert waiting.encode(columns, 1) == [producer.value(number, {"p": 0.5})]


@both
@pytest.mark.parametrize(
    ("key", "label"), [({"a": 1}, b""), (b"\xff", b""), ("a", b"\xff")], ids=["dict", "key", "text"]
)
def test_answer_that_is_not_as_the_schema_says_is_refused(
    tmp_path: Path, kind: FormatKind, key: object, label: bytes
) -> None:
    options = Producer(kind, id="string", p="string").save(tmp_path)
    write = opened(kind, writes(spec("p", Datatype.BYTES), answered=["id"]), **options)

    with pytest.raises(InvalidArgumentError, match=r"not as its .* says|are not UTF-8"):
        write.encode({"id": [key], "p": array([label], Datatype.BYTES)}, 1)


@both
def test_two_answers_are_not_called_the_same(kind: FormatKind) -> None:
    with pytest.raises(InvalidArgumentError, match=r"both 'a\.b' and 'a/b' 'a_b'"):
        opened(kind, writes(spec("a.b"), spec("a/b")))


@both
def test_schema_is_needed_to_read_and_a_subject_to_write(kind: FormatKind) -> None:
    with pytest.raises(InvalidArgumentError, match=r"options\.registry or options\.\w+_file"):
        opened(kind, reads(spec("x")))
    with pytest.raises(InvalidArgumentError, match=r"options\.subject"):
        opened(kind, writes(spec("x")), Registry())


@st.composite
def tensors(draw: st.DrawFn, rows: int) -> tuple[FieldSpec, Any]:
    """A field, and an array of its values."""
    datatype = draw(st.sampled_from(list(Datatype)))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    count = rows * int(np.prod(shape))
    if datatype is Datatype.BYTES:
        texts = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        flat = np.array([one.encode() for one in texts], object)
    elif datatype is Datatype.BOOL:
        flat = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    else:
        size = datatype.dtype.itemsize * count
        flat = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), datatype.dtype)
        if datatype is Datatype.UINT64:
            flat = flat >> np.uint64(1)  # Avro has 63 bits for them
    return FieldSpec(name="", datatype=datatype, shape=shape), flat.reshape(rows, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(MODULES))
@given(data=st.data(), rows=st.integers(1, 4))
def test_tensors_and_passed_fields_come_back(
    kind: FormatKind, data: st.DataObject, rows: int
) -> None:
    made = data.draw(st.lists(tensors(rows), min_size=1, max_size=4))
    arrays = {f"t{at}": array for at, (_, array) in enumerate(made)}
    specs = [
        FieldSpec(name=f"t{at}", datatype=one.datatype, shape=one.shape)
        for at, (one, _) in enumerate(made)
    ]
    ids = data.draw(st.lists(st.none() | st.text(max_size=5), min_size=rows, max_size=rows))
    registry = Registry()
    options: dict[str, Any] = {"subject": "out-value", "register": True, "types": {"id": "BYTES"}}
    write = opened(kind, writes(*specs, answered=["id"]), registry, **options)
    read = opened(kind, reads(*specs, passed=["id"]), registry)
    signature = ModelSignature(
        inputs=tuple(
            TensorSpec(name=one.name, datatype=one.datatype, shape=(-1, *one.shape))
            for one in specs
        ),
        outputs=(),
        batched=True,
    )
    inputs = ModelInputs("model", signature).tensors
    sources = [InputSource(tensor=inputs[one.name], fields=(one.name,)) for one in specs]
    written = AnswerFields(format=write, answered=("id",), outputs=())

    values = write.encode(arrays | {"id": ids}, rows)
    decoded = FieldCodec(read, sources, written, batched=True).decode(
        [record(value) for value in values]
    )

    assert decoded.errors == {}
    (group,) = decoded.groups
    assert {name: found.dtype for name, found in group.inputs.items()} == {
        one.name: one.datatype.dtype for one in specs
    }
    assert group.context == {"id": ids}
    for name, values_in in arrays.items():
        np.testing.assert_array_equal(group.inputs[name], values_in)
