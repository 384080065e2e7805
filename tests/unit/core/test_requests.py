import numpy as np

from headrace.core import (
    BatchOutputs,
    InferRequest,
    InferResponse,
    Packed,
    RequestedOutput,
    RequestRows,
    Tensors,
    arrays_of,
)

ROW: Tensors = {"x": np.array([[1.0, 2.0]], np.float32)}


def test_a_request_with_other_inputs_is_the_same_else() -> None:
    told = {
        "model_name": "m",
        "rows": 2,
        "model_version": "3",
        "id": "a",
        "outputs": (RequestedOutput(name="y"),),
        "binary_data_output": True,
        "priority": 4,
        "timeout_s": 0.5,
        "parameters": {"p": 1},
    }
    request = InferRequest(inputs={}, **told)  # type: ignore[arg-type]  # of many types

    other = request.with_inputs(ROW)

    assert {name: getattr(other, name) for name in told} == told
    assert other.inputs is ROW


def test_bytes_become_an_array_when_somebody_asks() -> None:
    packed = Packed("x", (1, 2), np.dtype("<f4"), ROW["x"].tobytes())
    request = InferRequest(model_name="m", inputs=packed)

    np.testing.assert_array_equal(request.inputs["x"], ROW["x"])
    assert request.inputs is request.inputs
    assert not request.inputs["x"].flags.writeable


def test_a_part_of_a_batch_is_its_rows() -> None:
    array = np.arange(6).reshape(3, 2)
    response = InferResponse(model_name="m", outputs=RequestRows(BatchOutputs({"y": array}), 1, 3))

    assert response.outputs["y"].tolist() == [[2, 3], [4, 5]]
    assert response.outputs is response.outputs
    assert arrays_of(ROW) is ROW


def test_both_say_what_is_in_them() -> None:
    response = InferResponse(model_name="m", model_version="3", id="a", outputs=ROW)

    assert repr(response).startswith("InferResponse(model_name='m', model_version='3', id='a', ")
    assert "[1., 2.]" in repr(response)
    assert "[1., 2.]" in repr(InferRequest(model_name="m", inputs=ROW))
