import pytest
from tritonclient.grpc import service_pb2

from headrace.core import BatchingSpec, InvalidArgumentError, UnsupportedError
from headrace.observe import BatchStatistics, ModelStatistics
from headrace.protocol import (
    IndexEntry,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from headrace.protocol.grpc_messages import (
    encode_health,
    encode_response,
    encode_stream_error,
    encode_stream_response,
    parse_request,
    rpc_names,
)
from headrace.protocol.protos import HEALTH_SERVICE
from tests.unit.protocol.models import ROW


def test_every_rpc_has_a_request_and_a_response() -> None:
    for rpc in rpc_names():
        if rpc != "ModelStreamInfer":
            parse_request(rpc, b"")
            encode_response(rpc, {})
    assert len(rpc_names()) == 20
    assert rpc_names(HEALTH_SERVICE) == ("Check", "Watch")


def test_a_request_is_parsed() -> None:
    sent = service_pb2.ModelMetadataRequest(name="m", version="1").SerializeToString()

    got = parse_request("ModelMetadata", memoryview(sent))

    assert (got.name, got.version) == ("m", "1")


def test_garbage_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="failed to parse the ModelReady request"):
        parse_request("ModelReady", b"\xff\xff")


def test_a_request_about_a_model_is_short() -> None:
    """Two bytes for an entry of a map become eighty in memory."""
    with pytest.raises(InvalidArgumentError, match="more than 1048576"):
        parse_request("RepositoryModelLoad", b"\x1a\x00" * (1 << 20))


@pytest.mark.parametrize("rpc", ["", "Nothing", "ModelInfer2" * 100])
def test_an_unknown_rpc_is_unsupported(rpc: str) -> None:
    with pytest.raises(UnsupportedError, match="has no rpc"):
        parse_request(rpc, b"")


def test_triton_s_client_reads_the_documents() -> None:
    statistics = ModelStatistics(name="m", version="1", inference_count=7)
    statistics.success.add(5, 2)
    statistics.batches[4] = BatchStatistics()
    batching = BatchingSpec(max_batch_size=8, default_timeout_s=2, max_queue_delay_s=0.001)

    server = service_pb2.ServerMetadataResponse.FromString(
        encode_response("ServerMetadata", server_metadata())
    )
    model = service_pb2.ModelMetadataResponse.FromString(
        encode_response("ModelMetadata", model_metadata("m", ["1"], ROW, runtime="onnx"))
    )
    config = service_pb2.ModelConfigResponse.FromString(
        encode_response(
            "ModelConfig",
            {"config": model_config("m", "1", ROW, runtime="onnx", batching=batching)},
        )
    ).config
    counted = service_pb2.ModelStatisticsResponse.FromString(
        encode_response("ModelStatistics", model_statistics([statistics]))
    ).model_stats[0]
    index = service_pb2.RepositoryIndexResponse.FromString(
        encode_response(
            "RepositoryIndex", {"models": repository_index([IndexEntry("m", "1", "READY")])}
        )
    )

    assert server.name == "headrace"
    assert [tuple(tensor.shape) for tensor in model.inputs] == [(-1, 4)]
    assert (config.max_batch_size, list(config.input[0].dims)) == (8, [4])
    assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 2_000_000
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert list(config.version_policy.specific.versions) == [1]
    assert counted.inference_count == 7
    assert (counted.inference_stats.success.count, counted.inference_stats.success.ns) == (2, 5)
    assert counted.batch_stats[0].batch_size == 4
    assert index.models[0].state == "READY"


@pytest.mark.parametrize(("serving", "number"), [(True, 1), (False, 2)])
def test_health_is_a_number(serving: bool, number: int) -> None:  # noqa: FBT001  # a parameter
    assert encode_health(serving=serving) == bytes([8, number])


@pytest.mark.parametrize("id_length", [0, 5, 300, 70_000])
def test_a_streamed_answer_wraps_the_answer(id_length: int) -> None:
    answer = service_pb2.ModelInferResponse(id="a" * id_length)

    sent = encode_stream_response(answer.SerializeToString())

    got = service_pb2.ModelStreamInferResponse.FromString(sent)
    assert got.infer_response == answer
    assert got.SerializeToString() == sent


def test_a_streamed_error_names_its_request() -> None:
    plain = service_pb2.ModelStreamInferResponse.FromString(encode_stream_error("bad"))
    named = service_pb2.ModelStreamInferResponse.FromString(
        encode_stream_error("bad", request_id="7")
    )

    assert plain.error_message == named.error_message == "bad"
    assert not plain.HasField("infer_response")
    assert named.infer_response.id == "7"
