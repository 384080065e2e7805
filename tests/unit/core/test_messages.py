import msgspec
import pytest

from headrace.core import (
    BatchingSpec,
    InferRequest,
    InferResponse,
    PaddingSpec,
    ReplicaSettings,
    RequestedOutput,
    SystemClock,
)


def test_replica_settings_survive_the_way_to_the_process() -> None:
    settings = ReplicaSettings(
        model_name="m",
        model_version="1",
        path="/m.onnx",
        batching=BatchingSpec(padding=PaddingSpec(values={"ids": 1})),
        labels={"prob": ["a"]},
    )

    assert msgspec.json.decode(msgspec.json.encode(settings), type=ReplicaSettings) == settings


def test_a_setting_that_does_not_exist_is_refused() -> None:
    text = b'{"model_name": "m", "model_version": "1", "path": "/m", "prot": 1}'

    with pytest.raises(msgspec.ValidationError, match="prot"):
        msgspec.json.decode(text, type=ReplicaSettings)


def test_a_request_asks_for_every_output_unless_told() -> None:
    request = InferRequest(model_name="m", inputs={})

    assert (request.outputs, request.rows, request.timeout_s) == ((), 1, None)
    assert RequestedOutput(name="y").classification == 0
    assert InferResponse(model_name="m", outputs={}).id == ""


def test_the_monotonic_clock_never_goes_back_and_the_other_is_after_2020() -> None:
    clock = SystemClock()
    first = clock.monotonic()

    assert clock.monotonic() >= first
    assert clock.now() > 1_577_836_800
