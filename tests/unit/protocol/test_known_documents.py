"""Documents that are known again say what they would say if they were parsed."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import HeadraceError, InferRequest, ModelSignature
from headrace.protocol import InferDecoder
from headrace.protocol.json_messages import around_data
from tests.unit.protocol.models import FOUR, PAIR, ROW, request, signature, spec, tensor

INTEGERS = signature(spec("x", "INT32", -1, 4))

Told = tuple[Any, ...]


def told(decoder: InferDecoder, body: bytes) -> Told:
    """All that a request says, or why it is none."""
    try:
        got = decoder.decode(body)
    except HeadraceError as error:
        return type(error), str(error)
    arrays = {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in got.inputs.items()
    }
    options = (got.binary_data_output, got.priority, got.timeout_s, got.parameters, got.outputs)
    return arrays, got.rows, got.id, got.model_name, got.model_version, options


def fresh(model: ModelSignature = ROW) -> InferDecoder:
    return InferDecoder("m", "1", model)


def as_text(document: object, spaces: str, key: str) -> bytes:
    """JSON in one of several spellings."""
    text = json.dumps(document, separators=(f",{spaces}", f":{spaces}"))
    return text.replace('"data"', key).encode()


numbers = (
    st.floats(-10, 10, width=32)
    | st.integers(-(2**40), 2**40)
    | st.sampled_from([1e39, -0.0, 10**400, True, None, "1", [1.0]])
)
flat = st.lists(numbers, min_size=3, max_size=5)
datas = flat | st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=2)
documents = st.builds(
    as_text,
    st.fixed_dictionaries(
        {
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["x", "x", "x", '","data":[1]', "é"]),
                        "shape": st.sampled_from([[1, 4], [1, 4], [2, 4], [4]]),
                        "datatype": st.sampled_from(["FP32", "FP32", "INT32"]),
                        "data": datas,
                    },
                    optional={"parameters": st.sampled_from([None, {}, {"binary_data_size": 4}])},
                ),
                min_size=1,
                max_size=2,
            )
        },
        optional={
            "id": st.sampled_from(["7", "[1]", None]),
            "parameters": st.sampled_from(
                [None, {"priority": 2}, {"binary_data_output": True}, {"data": [1, 2, 3, 4]}]
            ),
            "outputs": st.sampled_from([None, [{"name": "y"}], []]),
        },
    ),
    st.sampled_from(["", " ", "\n\t"]),
    st.sampled_from(['"data"', '"data"', '"d\\u0061ta"', '"data":[9,9,9,9],"data"']),
)


@given(st.lists(documents, max_size=6), st.sampled_from([ROW, INTEGERS]))
def test_what_was_known_before_changes_nothing(bodies: list[bytes], model: ModelSignature) -> None:
    knowing = fresh(model)

    for body in [one for one in bodies for _ in range(2)]:
        assert told(knowing, body) == told(fresh(model), body)


@given(st.binary(max_size=12), st.integers(0, 120), st.sampled_from(["[1,2,3,4]", "[[1,2,3,4]]"]))
def test_a_changed_byte_is_read_as_the_parser_reads_it(put: bytes, at: int, data: str) -> None:
    body = request(tensor(json.loads(data)), id="a")
    at = min(at, len(body))
    changed = body[:at] + put + body[at + len(put) :]
    knowing = fresh()
    knowing.decode(body)

    assert told(knowing, changed) == told(fresh(), changed)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2, 3, 4]]], ids=["flat", "nested"])
def test_a_document_is_known_with_other_numbers(data: list[Any]) -> None:
    decoder = fresh()
    decoder.decode(request(tensor(data), id="a"))

    got = decoder._documents.read(request(tensor(np.multiply(data, 2).tolist()), id="a"))

    assert got is not None
    assert np.array_equal(got.inputs["x"], FOUR * 2)
    assert (got.id, got.rows, got.model_name, got.model_version) == ("a", 1, "m", "1")
    assert decoder._documents.read(request(tensor(data), id="b")) is None


def test_several_documents_are_known_and_the_latest_few_kept() -> None:
    decoder = fresh()
    bodies = [request(tensor([1, 2, 3, 4]), id=str(number)) for number in range(300)]
    for body in bodies:
        decoder.decode(body)

    assert {told(decoder, body)[2] for body in bodies} == {str(number) for number in range(300)}
    assert len(decoder._documents._known) == 4


def test_requests_of_several_inputs_are_not_learnt() -> None:
    one = {"shape": [1, 1], "datatype": "INT64"}
    body = request(tensor([1], name="ids", **one), tensor([2], name="mask", **one))
    decoder = fresh(PAIR)
    for _ in range(3):
        assert decoder.decode(body).inputs["mask"].tolist() == [[2]]

    assert not decoder._documents._known


def test_requests_that_share_a_document_share_no_array() -> None:
    decoder = fresh()
    requests: list[InferRequest] = [
        decoder.decode(request(tensor([number] * 4))) for number in range(3)
    ]

    assert [float(one.inputs["x"][0, 0]) for one in requests] == [0, 1, 2]


@pytest.mark.parametrize(
    ("body", "around"),
    [
        (b'{"inputs":[{"data":[1, 2]}]}', (b'{"inputs":[{"data":', b"}]}")),
        (b'{"inputs":[{"shape":[],"data":[]}]}', None),
        (b'{"inputs":[{"shape":[1],"data":[1]}]}', (b'{"inputs":[{"shape":[1],"data":', b"}]}")),
        (b'{"inputs":[{"data":[1],"shape":[1]}]}', None),  # the last one is the shape
    ],
)
def test_data_is_found_where_it_stands_or_not_at_all(
    body: bytes, around: tuple[bytes, bytes] | None
) -> None:
    assert around_data(body) == around
