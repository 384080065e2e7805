"""JSON objects of other programs are read, and answers are what JSON allows."""

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError, ModelSignature, TensorSpec
from headrace.protocol.inputs import ModelInputs
from headrace.streaming.codec import AnswerFields, Decoded, FieldCodec, InputSource
from headrace.streaming.formats import FieldLayout, FieldSpec
from headrace.streaming.formats.json_objects import JsonObjects, cut_rows
from tests.unit.streaming.parts import records

NAN = '"y": NaN'
FLOATS = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf])


def decoded(values: list[bytes], datatype: Datatype = Datatype.FP32) -> Decoded:
    """Return records with the field `x`, a list of three, as the stream's codec decodes them."""
    tensor = TensorSpec(name="x", datatype=datatype, shape=(-1, 3))
    signature = ModelSignature(inputs=(tensor,), outputs=(), batched=True)
    reads = JsonObjects(
        FieldLayout(inputs=(FieldSpec(name="x", datatype=datatype, shape=(3,)),), outputs=())
    )
    source = InputSource(tensor=ModelInputs("m", signature).get("x"), fields=("x",))
    written = AnswerFields(format=reads, answered=(), outputs=())
    return FieldCodec(reads, [source], written, batched=True).decode(records(*values))


@given(rows=st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=6))
def test_floats_of_pythons_json_are_read(rows: list[list[float]]) -> None:
    array = np.array(rows, np.float32)

    got = decoded([json.dumps({"x": row, "other": row}).encode() for row in array.tolist()])

    assert got.errors == {}
    (group,) = got.groups
    assert np.array_equal(group.inputs["x"], array, equal_nan=True)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[math.nan, math.inf], [-math.inf, 0.5]], [[None, "Infinity"], ["-Infinity", 0.5]]),
        ([[], []], [[], []]),
    ],
)
def test_answers_are_json_by_its_standard(values: list[list[float]], text: list[object]) -> None:
    layout = FieldLayout(inputs=(), outputs=(FieldSpec(name="x", datatype=Datatype.FP32),))

    answers = JsonObjects(layout).encode({"x": np.array(values, np.float32)}, 2)

    assert [json.loads(one, parse_constant=pytest.fail)["x"] for one in answers] == text


@given(
    st.sampled_from([Datatype.FP32, Datatype.INT64, Datatype.BYTES]),
    st.lists(
        st.lists(
            st.sampled_from(["1", "-0.5", "null", "1e39", "1e999", '"a"', "true", "[1]", "{}"]),
            min_size=2,
            max_size=4,
        ).map(lambda items: f"[{','.join(items)}]"),
        max_size=2,
    ),
)
@example(Datatype.FP32, ['["a", 1, 1]', "[1, 1, 1]"])
def test_what_stands_beside_a_field_does_not_change_what_it_means(
    datatype: Datatype, fields: list[str]
) -> None:
    members = [f'"x": {field}' for field in fields]  # twice: the last one counts
    plain = decoded([f"{{{', '.join(members)}}}".encode()], datatype)
    beside = decoded([f"{{{', '.join([*members, NAN])}}}".encode()], datatype)

    assert plain.errors.keys() == beside.errors.keys()
    for group, other in zip(plain.groups, beside.groups, strict=True):
        np.testing.assert_array_equal(group.inputs["x"], other.inputs["x"])


@given(
    elements=st.lists(st.one_of(st.binary(max_size=9), st.text(max_size=9)), min_size=1, max_size=6)
)
def test_texts_are_texts_and_other_bytes_are_base64(elements: list[bytes | str]) -> None:
    raw = [one.encode() if isinstance(one, str) else one for one in elements]
    array = np.empty((len(raw), 1), dtype=object)
    array[:, 0] = raw

    texts, depth = cut_rows(array)
    assert depth == 0
    for text, one in zip(texts, raw, strict=True):
        (found,) = msgspec.json.decode(text)
        try:
            assert found == one.decode()
        except UnicodeDecodeError:
            assert msgspec.convert(found["b64"], bytes) == one


@pytest.mark.parametrize("name", ["a b", "100%", "é", "%b%s", "self", "class", "__x", "f0"])
def test_any_name_can_be_a_field(name: str) -> None:
    spec = FieldSpec(name=name, datatype=Datatype.INT64)
    reads = JsonObjects(FieldLayout(inputs=(spec,), outputs=()))
    writes = JsonObjects(FieldLayout(inputs=(), outputs=(spec,)))
    (value,) = writes.encode({name: np.array([7])}, 1)

    assert msgspec.json.decode(value) == {name: 7}
    assert reads.decode(records(value)).columns == {name: [7]}


@pytest.mark.parametrize("name", ['a "b"', "a\\b", "a\n"])
def test_a_name_that_has_to_be_escaped_is_refused_with_the_way_out(name: str) -> None:
    spec = FieldSpec(name=name, datatype=Datatype.INT64)
    with pytest.raises(InvalidArgumentError, match="`fields`"):
        JsonObjects(FieldLayout(inputs=(spec,), outputs=()))


def test_answers_without_fields_are_empty_objects() -> None:
    assert JsonObjects(FieldLayout(inputs=(), outputs=())).encode({}, 2) == [b"{}", b"{}"]
