import json

import numpy as np
import pytest

from bench.payloads import HEADER_LENGTH, binary_payload
from bench.peers.wire import V2_BINARY, V2_JSON, Format, Wire, answer, payload
from bench.verify import WrongAnswerError

ROW = {"input": np.array([[0.1, 2.0]], np.float32)}
TOKENS = {"input_ids": np.array([[7, 8]]), "attention_mask": np.array([[1, 1]])}
EXPECTED = {"prob": np.array([[0.25, 0.75]], np.float32)}


def wire(form: Format) -> Wire:
    return Wire(format=form, path="/{model}")


def test_v2_goes_to_the_models_own_path() -> None:
    made = payload(V2_JSON, "mlp", ROW)

    assert made.path == "/v2/models/mlp/infer"
    assert json.loads(made.body)["inputs"][0]["shape"] == [1, 2]


def test_rows_keep_their_batch_axis() -> None:
    made = payload(wire(Format.ROWS), "mlp", ROW)

    assert made.path == "/mlp"
    assert json.loads(made.body) == {"input": [[0.1, 2.0]]}
    assert made.headers["Content-Type"] == "application/json"


def test_one_row_has_no_batch_axis() -> None:
    made = payload(wire(Format.ROW), "minilm", TOKENS)

    assert json.loads(made.body) == {"input_ids": [7, 8], "attention_mask": [1, 1]}


def test_raw_bytes_are_those_of_the_only_input() -> None:
    made = payload(wire(Format.RAW), "mlp", ROW)

    assert np.frombuffer(made.body, np.float32).tolist() == ROW["input"][0].tolist()


def test_raw_bytes_of_two_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="too many values"):
        payload(wire(Format.RAW), "minilm", TOKENS)


def test_a_gateways_prefix_comes_before_the_path() -> None:
    behind = wire(Format.ROWS).at("/endpoints/mlp")

    assert payload(behind, "mlp", ROW).path == "/endpoints/mlp/mlp"


@pytest.mark.parametrize(
    "body",
    [b'{"prob": [[0.25, 0.75]]}', b'{"prob": [0.25, 0.75]}', b"[[0.25, 0.75]]"],
    ids=["rows", "one row", "without a name"],
)
def test_own_json_is_read_in_all_its_forms(body: bytes) -> None:
    read = answer(wire(Format.ROWS), body, {}, EXPECTED)

    assert read["prob"].tolist() == EXPECTED["prob"].tolist()


def test_v2_json_is_read() -> None:
    tensor = {"name": "prob", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}

    read = answer(V2_JSON, json.dumps({"outputs": [tensor]}).encode(), {}, EXPECTED)

    assert read["prob"].tolist() == [[0.25, 0.75]]


def test_v2_binary_is_read_whatever_the_case_of_its_header() -> None:
    sent = binary_payload("mlp", EXPECTED)
    body = sent.body.replace(b'"inputs"', b'"outputs"')
    head = str(int(sent.headers[HEADER_LENGTH]) + 1)

    read = answer(V2_BINARY, body, {HEADER_LENGTH.lower(): head}, EXPECTED)

    assert read["prob"].tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    "body", [b"", b"busy", b"null", b'{"detail": "no"}', b'{"prob": [[1], [2, 3]]}', b'"text"']
)
def test_what_is_no_answer_is_told_with_its_beginning(body: bytes) -> None:
    with pytest.raises(WrongAnswerError, match="cannot read an answer as JSON"):
        answer(wire(Format.ROWS), body, {}, EXPECTED)
