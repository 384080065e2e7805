import json

import pytest

from headrace import __version__
from headrace.core import BatchingSpec, InvalidArgumentError
from headrace.observe import ModelStatistics
from headrace.protocol import (
    IndexEntry,
    decode_index_request,
    encode_document,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from tests.unit.protocol.models import MIXED, ROW, of

BATCHING = BatchingSpec(max_batch_size=8, max_queue_size=5)


def test_the_server_lists_only_what_it_does() -> None:
    plain, managed = server_metadata(), server_metadata(has_model_repository=True)

    assert (plain["name"], plain["version"]) == ("headrace", __version__)
    assert "binary_tensor_data" in plain["extensions"]
    assert not {"sequence", "model_repository", "system_shared_memory"} & set(plain["extensions"])
    assert managed["extensions"] == [*plain["extensions"], "model_repository"]


def test_a_model_is_described_as_the_protocol_says() -> None:
    assert model_metadata("m", ["1", "2"], ROW, runtime="onnx") == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "z", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert model_metadata("m", ["1"], ROW, runtime="python")["platform"] == "python"
    saved = model_metadata("m", ["1"], ROW, runtime="savedmodel")
    assert saved["platform"] == "tensorflow_savedmodel"


def test_a_config_leaves_out_the_batch_axis() -> None:
    config = model_config("m", "3", MIXED, runtime="onnx", batching=BATCHING)

    assert config["max_batch_size"] == 8
    assert [(i["name"], i["data_type"], i["dims"]) for i in config["input"]] == [
        ("age", "TYPE_INT64", [1]),
        ("name", "TYPE_STRING", [1]),
        ("ok", "TYPE_BOOL", [1]),
    ]
    assert config["output"][0]["dims"] == [2]
    assert config["backend"] == "onnxruntime"
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 5
    assert config["version_policy"] == {"specific": {"versions": [3]}}
    assert config["model_transaction_policy"] == {"decoupled": False}


def test_a_model_without_a_batch_axis_has_a_batch_size_of_zero() -> None:
    model = of("FP32", 2, 3, batched=False)

    config = model_config("m", "main", model, runtime="python", batching=BATCHING)

    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [2, 3]
    assert "dynamic_batching" not in config
    assert config["version_policy"] == {"specific": {"versions": []}}


def test_statistics_have_triton_s_names() -> None:
    (got,) = model_statistics([ModelStatistics(name="m", version="1")])["model_stats"]

    assert list(got["inference_stats"]) == [
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    ]
    assert got["batch_stats"] == got["memory_usage"] == []


def test_the_index_can_leave_out_what_is_not_ready() -> None:
    entries = [IndexEntry("m", "1", "READY"), IndexEntry("n", "2", "UNAVAILABLE", "no file")]

    assert [entry["name"] for entry in repository_index(entries)] == ["m", "n"]
    assert repository_index(entries, ready=True) == [
        {"name": "m", "version": "1", "state": "READY", "reason": ""}
    ]


@pytest.mark.parametrize(
    ("body", "ready"),
    [
        (b"", False),
        (b" ", False),
        (b"{}", False),
        (b'{"ready": null}', False),
        (b'{"ready": true, "x": 1}', True),
    ],
)
def test_an_index_request_may_ask_for_ready_models(body: bytes, ready: bool) -> None:  # noqa: FBT001  # a parameter
    assert decode_index_request(body) is ready


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"ready": 1}'])
def test_other_index_requests_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="failed to parse"):
        decode_index_request(body)


def test_documents_are_json() -> None:
    document = model_config("m", "1", ROW, runtime="onnx", batching=BATCHING)

    assert json.loads(encode_document(document)) == document
