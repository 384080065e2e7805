import math

import numpy as np

from headrace.cli.infer import to_document, to_rows
from headrace.core import InferResponse


def test_a_row_of_the_batch_is_a_line() -> None:
    outputs = {"label": np.array([3, 4]), "prob": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)}

    columns, lines, hidden = to_rows(outputs, batched=True)

    assert columns == ["row", "label", "prob"]
    assert lines == [
        ["0", "3", "0.25  0.75   largest: 1"],
        ["1", "4", "0.5  0.5   largest: 0"],
    ]
    assert hidden == 0


def test_a_model_without_batches_is_one_line() -> None:
    _, lines, _ = to_rows({"y": np.array([1, 2])}, batched=False)

    assert lines == [["0", "1  2"]]


def test_many_rows_and_values_are_cut() -> None:
    _, lines, hidden = to_rows({"y": np.zeros((30, 4, 4), np.int64)}, batched=True)

    assert len(lines) == 20
    assert hidden == 10
    assert lines[0][1] == "0  0  0  0  0  0  … (4x4)"


def test_outputs_of_different_lengths_leave_gaps() -> None:
    _, lines, _ = to_rows({"a": np.array([1, 2]), "b": np.array([3])}, batched=True)

    assert lines[1] == ["1", "2", ""]


def test_text_is_shown_as_text() -> None:
    _, lines, _ = to_rows({"y": np.array([b"a\xff"], object)}, batched=True)

    assert lines == [["0", "a\ufffd"]]


def test_the_document_is_a_v2_response() -> None:
    response = InferResponse(
        model_name="m",
        model_version="1",
        id="7",
        outputs={"p": np.array([[math.inf, 0.5]], np.float32), "t": np.array([b"x"], object)},
    )

    document = to_document(response)

    assert document["model_version"] == "1"
    assert document["id"] == "7"
    assert document["outputs"][0]["shape"] == [1, 2]
    assert document["outputs"][0]["data"] == ["Infinity", 0.5]
    assert document["outputs"][1] == {
        "name": "t",
        "datatype": "BYTES",
        "shape": [1],
        "data": ["x"],
    }


def test_what_the_server_did_not_say_is_not_in_the_document() -> None:
    assert to_document(InferResponse(model_name="m", outputs={})) == {
        "model_name": "m",
        "outputs": [],
    }
