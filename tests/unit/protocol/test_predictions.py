"""MLflow's scoring protocol: validated requests, and the JSON of predictions."""

import json

import numpy as np
import pytest

from headrace.core import (
    Array,
    Datatype,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    TensorSpec,
)
from headrace.core.predictions import PredictionForm, PredictionLayout
from headrace.protocol import PredictionCodec
from headrace.protocol.predictions import CSV_TYPE, JSON_TYPE


def _codec(*outputs: str, form: PredictionForm = PredictionForm.VALUES) -> PredictionCodec:
    specs = tuple(TensorSpec(name=n, datatype=Datatype.FP32, shape=(-1,)) for n in outputs)
    signature = ModelSignature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),),
        outputs=specs,
        batched=True,
    )
    layout = PredictionLayout(outputs=outputs, of_table=form, of_tensors=PredictionForm.VALUES)
    return PredictionCodec("m", "1", signature, layout, max_batch_size=4)


def _encoded(form: PredictionForm, **outputs: Array) -> object:
    response = InferResponse(model_name="m", model_version="1", outputs=outputs)
    predictions: object = json.loads(_codec(*outputs).encode(response, form))["predictions"]
    return predictions


def test_request_is_validated_and_names_the_outputs_of_the_prediction() -> None:
    codec = _codec("y", form=PredictionForm.RECORDS)
    request, form = codec.decode(b'{"inputs": [[1, 2], [3, NaN]]}', JSON_TYPE)
    assert form is PredictionForm.VALUES
    assert request.rows == 2
    assert [output.name for output in request.outputs] == ["y"]
    np.testing.assert_array_equal(request.inputs["x"], np.array([[1, 2], [3, np.nan]], np.float32))
    request, form = codec.decode(b"a,b\n1,2\n", CSV_TYPE)
    assert form is PredictionForm.RECORDS
    np.testing.assert_array_equal(request.inputs["x"], np.array([[1, 2]], np.float32))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", JSON_TYPE),
        (b'{"inputs": [[1, 2, 3]]}', JSON_TYPE),
        (b'{"inputs": [["a", "b"]]}', JSON_TYPE),
        (b'{"inputs": [[1, 2], [3]]}', JSON_TYPE),
        (b'{"inputs": [[1, 2], [1, 2], [1, 2], [1, 2], [1, 2]]}', JSON_TYPE),
        (b"\xff", CSV_TYPE),
        (b"a,b\n1,x\n", CSV_TYPE),
    ],
)
def test_invalid_request_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(InvalidArgumentError):
        _codec("y").decode(body, content_type)


def test_values_are_written_as_python_writes_them() -> None:
    values = np.array([0.1, np.nan], np.float32)
    assert _encoded(PredictionForm.VALUES, y=values) == [float(np.float32(0.1)), None]
    texts = np.array([b"a", b"b"], np.object_)
    assert _encoded(PredictionForm.VALUES, y=texts) == ["a", "b"]


def test_data_frame_is_a_list_of_objects() -> None:
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]])
    texts = np.array([b"a", b"b"], np.object_)
    assert _encoded(PredictionForm.COLUMNS, y=matrix) == [{"0": 1, "1": 2}, {"0": 3, "1": 4}]
    rows = [{"y": 1, "t": "a"}, {"y": 2, "t": "b"}]
    assert _encoded(PredictionForm.RECORDS, y=np.array([[1.0], [2.0]]), t=texts) == rows


def test_dictionary_and_any_other_object_are_written_by_name_and_as_they_are() -> None:
    assert _encoded(PredictionForm.MAPPING, y=np.array([1]), z=np.array([[2.5]])) == {
        "y": [1],
        "z": [[2.5]],
    }
    document = np.array([b'{"any": ["object"]}'], np.object_)
    assert _encoded(PredictionForm.DOCUMENT, y=document) == {"any": ["object"]}
