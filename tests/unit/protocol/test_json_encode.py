import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_st

from headrace.core import (
    Array,
    BatchOutputs,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    RequestedOutput,
    RequestRows,
    RuntimeFailedError,
)
from headrace.protocol import InferEncoder
from tests.unit.protocol.models import ROW

Y: Array = np.array([[0.25, 0.75]], dtype="<f4")
Z: Array = np.array([7], dtype="<i8")


def ask(*outputs: RequestedOutput, id: str = "", binary: bool = False) -> InferRequest:  # noqa: A002  # the protocol's word
    return InferRequest(
        model_name="m", inputs={}, id=id, outputs=outputs, binary_data_output=binary
    )


def answer(parameters: dict[str, Any] | None = None, **outputs: Array) -> InferResponse:
    return InferResponse(model_name="m", outputs=outputs, parameters=parameters)


def encode(response: InferResponse, request: InferRequest) -> tuple[bytes, int | None]:
    body, length = InferEncoder("m", "3", ROW).encode(response, request)
    return body if isinstance(body, bytes) else b"".join(body), length


def document(response: InferResponse, request: InferRequest) -> Any:  # noqa: ANN401  # JSON
    body, length = encode(response, request)
    return json.loads(body[:length])


def test_an_answer_in_json_is_written_as_triton_writes_it() -> None:
    body, length = encode(answer(y=Y), ask(id='a"b'))

    assert length is None
    assert body == (
        b'{"model_name":"m","model_version":"3","id":"a\\"b","outputs":[{"name":"y",'
        b'"datatype":"FP32","shape":[1,2],"data":[0.25,0.75]}]}'
    )


def test_an_answer_in_binary_follows_the_json() -> None:
    body, length = encode(answer(y=Y), ask(binary=True))

    header = (
        b'{"model_name":"m","model_version":"3","outputs":[{"name":"y","datatype":"FP32",'
        b'"shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    )
    assert body == header + Y.tobytes()
    assert length == len(header)


def test_one_encoder_answers_the_same_every_time() -> None:
    encoder = InferEncoder("m", "3", ROW)
    for request in (ask(), ask(binary=True), ask(id="a"), ask(id="b", binary=True)):
        first = encoder.encode(answer(y=Y), request)
        assert encoder.encode(answer(y=Y), request) == first
        other = encoder.encode(answer(y=Y.astype("<f8")), request)
        assert b"FP64" in b"".join(other[0] if isinstance(other[0], list) else [other[0]])
        assert encoder.encode(answer(y=Y), request) == first


def test_several_outputs_and_parameters_are_written() -> None:
    got = document(answer({"k": 1}, y=Y, z=Z), ask())

    assert got["parameters"] == {"k": 1}
    assert [(o["name"], o["datatype"], o["data"]) for o in got["outputs"]] == [
        ("y", "FP32", [0.25, 0.75]),
        ("z", "INT64", [7]),
    ]


def test_outputs_come_in_the_order_and_form_that_was_asked_for() -> None:
    request = ask(
        RequestedOutput(name="z"), RequestedOutput(name="y", binary_data=False), binary=True
    )

    body, length = encode(answer(y=Y, z=Z), request)

    got = json.loads(body[:length])
    assert got["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert got["outputs"][1]["data"] == [0.25, 0.75]
    assert body[length:] == Z.tobytes()


def test_an_output_that_the_model_did_not_answer_is_its_failure() -> None:
    with pytest.raises(RuntimeFailedError, match="did not return output 'z'"):
        encode(answer(y=Y), ask(RequestedOutput(name="z")))


@pytest.mark.parametrize(
    ("array", "datatype", "data"),
    [
        (np.array(5, dtype="<i4"), "INT32", [5]),
        (np.zeros((2, 0), dtype="<f4"), "FP32", []),
        (np.array([True, False]), "BOOL", [True, False]),
        (np.array([2**64 - 1], dtype="<u8"), "UINT64", [2**64 - 1]),
        (np.array([-(2**63)], dtype="<i8"), "INT64", [-(2**63)]),
        (np.array([[b"a"], ["Zoë"]], dtype=object), "BYTES", ["a", "Zoë"]),
        (np.array(["ab", "c"]), "BYTES", ["ab", "c"]),
        (np.array([0.1], dtype="<f4"), "FP32", [0.1]),
        (np.array([1.5, 2], dtype=">f8"), "FP64", [1.5, 2]),
        (np.array([[1, 2], [3, 4]], dtype="<f4").T, "FP32", [1, 3, 2, 4]),
        (
            np.array([[np.nan, np.inf], [1, -np.inf]], dtype="<f4").T,
            "FP32",
            [None, 1, "Infinity", "-Infinity"],
        ),
    ],
)
def test_values_of_every_datatype_are_written(array: Array, datatype: str, data: Any) -> None:  # noqa: ANN401  # JSON
    (output,) = document(answer(y=array), ask())["outputs"]

    assert output == {
        "name": "y",
        "datatype": datatype,
        "shape": list(array.shape),
        "data": data,
    }


@pytest.mark.parametrize(
    ("array", "raw"),
    [
        (np.array(5, dtype="<i4"), b"\5\0\0\0"),
        (np.zeros((2, 0), dtype="<f4"), b""),
        (np.array([True, False]), b"\1\0"),
        (np.array([1.5], dtype="<f2"), b"\x00\x3e"),
        (np.array([b"\xff", "a"], dtype=object), b"\1\0\0\0\xff\1\0\0\0a"),
        (np.array([[1, 2], [3, 4]], dtype="u1").T, b"\1\3\2\4"),
        (np.array([1], dtype=">i2"), b"\1\0"),
    ],
)
def test_bytes_of_every_datatype_are_written(array: Array, raw: bytes) -> None:
    encoder = InferEncoder("m", "3", ROW)

    for _ in range(2):
        body, length = encoder.encode(answer(y=array), ask(binary=True))
        assert isinstance(body, bytes)
        assert body[length:] == raw


def test_a_large_answer_is_not_copied() -> None:
    array = np.zeros((1, 100_000), dtype="<f4")

    body, length = InferEncoder("m", "3", ROW).encode(answer(y=array), ask(binary=True))

    assert isinstance(body, list)
    assert len(body[0]) == length
    assert np.shares_memory(np.frombuffer(body[1], dtype="<f4"), array)


def test_what_json_cannot_carry_is_refused_with_the_way_out() -> None:
    for array in (np.array([b"\xff"], dtype=object), np.zeros(2, dtype="<f2")):
        with pytest.raises(InvalidArgumentError, match="use the binary data format"):
            encode(answer(y=array), ask())


def test_many_shapes_are_encoded_after_each_other() -> None:
    encoder = InferEncoder("m", "3", ROW)

    for length in range(1100):
        array = np.zeros(length, dtype="u1")
        assert encoder.encode(answer(y=array), ask(binary=True))[1] is not None
        assert encoder.encode(answer(y=array), ask())[1] is None


# Classification


def classes(array: Array, count: int) -> Any:  # noqa: ANN401  # JSON
    request = ask(RequestedOutput(name="y", classification=count))
    (output,) = document(answer(y=array), request)["outputs"]
    assert output["datatype"] == "BYTES"
    return output["shape"], output["data"]


def test_the_best_classes_come_first_with_their_labels() -> None:
    rows = np.array([[0.25, 0.75], [0.9, 0.1]], dtype="<f4")

    assert classes(rows, 1) == ([2, 1], ["0.750000:1:dog", "0.900000:0:cat"])


def test_more_classes_than_there_are_means_all_and_ties_keep_their_order() -> None:
    rows = np.array([[1, 3, 3]], dtype="<i4")

    assert classes(rows, 9) == ([1, 3], ["3:1:dog", "3:2", "1:0:cat"])


def test_nan_is_the_last_class() -> None:
    assert classes(np.array([[np.nan, 1.0]]), 2)[1] == ["1.000000:1:dog", "nan:0:cat"]


def test_classes_in_binary_are_bytes_elements() -> None:
    request = ask(RequestedOutput(name="y", classification=1, binary_data=True))

    body, length = encode(answer(y=Y), request)

    assert body[length:] == b"\x0e\0\0\0" + b"0.750000:1:dog"


@pytest.mark.parametrize("array", [np.array([[b"a"]], dtype=object), np.array([[True]])])
def test_what_is_no_number_has_no_classes(array: Array) -> None:
    with pytest.raises(InvalidArgumentError, match="class result not available for output 'y'"):
        classes(array, 1)


def answers(batch: dict[str, Array], sizes: list[int], request: InferRequest) -> list[bytes]:
    """What one encoder answers to requests of so many rows, whose rows ran together; twice."""
    encoder = InferEncoder("m", "3", ROW)
    bodies: list[bytes] = []
    for _ in range(2):
        together, start = BatchOutputs(batch), 0
        bodies = []
        for size in sizes:
            part = RequestRows(together, start, start + size)
            body, length = encoder.encode(InferResponse(model_name="m", outputs=part), request)
            assert (length is not None) == request.binary_data_output
            bodies.append(
                b"%d:" % (length or 0) + b"".join([body] if isinstance(body, bytes) else body)
            )
            start += size
    return bodies


batches = st.sampled_from(["<f4", "<f8", "<i8", "<u1", "?"]).flatmap(
    lambda dtype: arrays_st.arrays(
        np.dtype(dtype), arrays_st.array_shapes(max_dims=3, min_side=0, max_side=4)
    )
)


@given(batches, st.data(), st.sampled_from(["", "7"]), st.booleans())
def test_rows_that_ran_together_are_written_as_each_alone(
    array: Array,
    data: st.DataObject,
    request_id: str,
    binary: bool,  # noqa: FBT001  # Hypothesis gives it
) -> None:
    sizes: list[int] = []
    while sum(sizes) < len(array):
        sizes.append(data.draw(st.integers(1, len(array) - sum(sizes))))
    request = ask(id=request_id, binary=binary)

    alone, start = [], 0
    for size in sizes:
        body, length = encode(answer(y=array[start : start + size]), request)
        alone.append(b"%d:" % (length or 0) + body)
        start += size
    assert answers({"y": array}, sizes, request) == alone
    assert answers({"y": np.asfortranarray(array)}, sizes, request) == alone


def test_text_and_several_outputs_are_written_for_each_request() -> None:
    texts: Array = np.array([[b"],["], [b"b"]], dtype=object)
    first, second = documents({"y": texts, "z": np.array([1, 2])})

    assert [one["data"] for one in first["outputs"]] == [["],["], [1]]
    assert [one["data"] for one in second["outputs"]] == [["b"], [2]]
    alone = documents({"y": texts})
    assert [one["outputs"][0]["data"] for one in alone] == [["],["], ["b"]]


def documents(batch: dict[str, Array]) -> list[Any]:
    """What two requests of a row each are answered in JSON."""
    return [json.loads(body.removeprefix(b"0:")) for body in answers(batch, [1, 1], ask())]
