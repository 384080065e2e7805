import json
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from bench import payloads, text
from bench.bare import batches, pad
from bench.verify import WrongAnswerError, compare

ROW = {"input": np.array([[0.1, -2.5]], np.float32)}


def test_json_keeps_every_bit() -> None:
    body = json.loads(payloads.json_payload("m", ROW).body)

    (tensor,) = body["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("input", [1, 2], "FP32")
    assert np.array_equal(np.array(tensor["data"], np.float32), ROW["input"].ravel())


def test_binary_data_follows_its_head() -> None:
    payload = payloads.binary_payload("m", ROW)
    head = int(payload.headers[payloads.HEADER_LENGTH])

    assert json.loads(payload.body[:head])["inputs"][0]["parameters"]["binary_data_size"] == 8
    assert payload.body[head:] == ROW["input"].tobytes()


def test_a_frame_names_the_length_of_its_message() -> None:
    payload = payloads.grpc_payload("m", ROW)
    message = payload.body[payloads.FRAME_BYTES :]

    assert payload.body[: payloads.FRAME_BYTES] == b"\0" + len(message).to_bytes(4, "big")
    assert service_pb2.ModelInferRequest.FromString(message).model_name == "m"


def test_json_answers_are_read() -> None:
    output = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}

    (got,) = payloads.read_json(json.dumps({"outputs": [output]}).encode()).values()

    assert got.tolist() == [[1, 2]]


def test_binary_answers_are_read() -> None:
    spec = {"datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"outputs": [{"name": "a", **spec}, {"name": "b", **spec}]}).encode()
    data = np.arange(4, dtype=np.float32)

    got = payloads.read_binary(head + data.tobytes(), len(head))

    assert (got["a"].tolist(), got["b"].tolist()) == ([[0, 1]], [[2, 3]])


def test_stored_payloads_come_back(tmp_path: Path) -> None:
    sent = [payloads.json_payload("m", ROW), payloads.binary_payload("m", ROW)]

    assert payloads.read_payloads(payloads.write_payloads(sent, tmp_path)) == sent


def test_an_http_request_is_whole() -> None:
    head, body = payloads.json_payload("m", ROW).http().split(b"\r\n\r\n", 1)

    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: bench\r\n")
    assert head.endswith(f"Content-Length: {len(body)}".encode())


def test_a_different_answer_is_found() -> None:
    compare("server", ROW, ROW)
    with pytest.raises(WrongAnswerError, match="another 'input'"):
        compare("server", {"input": ROW["input"] + 1}, ROW)
    with pytest.raises(WrongAnswerError, match="answered"):
        compare("server", {}, ROW)


def test_sorted_batches_hold_neighbours_of_one_window() -> None:
    rows = [np.zeros(length, np.int64) for length in (9, 1, 8, 2, 7, 7, 7, 7)]
    stream = batches(rows, "sorted:2", 4)

    first = [[len(row) for row in next(stream)] for _ in range(2)]

    assert first == [[1, 2], [8, 9]]


def test_a_naive_batcher_takes_rows_as_they_come() -> None:
    rows = [np.zeros(length, np.int64) for length in (9, 1, 8, 2)]

    assert [len(row) for row in next(batches(rows, "fifo:2", 4))] == [9, 1]
    assert [len(row) for row in next(batches(rows, "one", 4))] == [9]


def test_padding_is_masked() -> None:
    padded = pad([np.array([5, 6, 7]), np.array([8])])

    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_drawn_rows_have_the_lengths_of_sentences() -> None:
    lengths = [len(row) for row in text.drawn_rows(2000)]

    assert (min(lengths) >= 3, max(lengths) <= 59) == (True, True)
    assert 22 < np.mean(lengths) < 25


def test_spearman_sees_order_only_and_shares_ranks() -> None:
    up = np.array([1.0, 2.0, 3.0])

    assert text.spearman(up, up**3) == pytest.approx(1)
    assert text.spearman(up, -up) == pytest.approx(-1)
    assert text.spearman(np.array([1, 1, 2, 2]), np.array([1, 2, 3, 4])) == pytest.approx(
        0.8944, 1e-3
    )
