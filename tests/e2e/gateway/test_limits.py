"""Sizes and times: what is too large or too slow is refused in the caller's own protocol."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from tests.e2e.gateway.lab import Lab, client, endpoint, grpc_target

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]

TOO_SLOW = (
    "endpoint 'm' did not answer within its `timeout_s`, or the caller's own; ask for less in one "
    "request, or raise `timeout_s` in the spec"
)


def _tensor(size_bytes: int) -> InferInput:
    tensor = InferInput("x", [size_bytes], "UINT8")
    tensor.set_data_from_numpy(np.zeros(size_bytes, np.uint8))
    return tensor


async def _chunks(size_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(size_bytes // 1000):
        yield b"x" * 1000


async def test_a_body_over_the_limit_is_refused_with_413_in_json(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")), max_body_bytes=10_000)

    async with client(gateway) as http:
        fits = await http.post("/v2/models/m/infer", content=b"x" * 10_000)
        sized = await http.post("/v2/models/m/infer", content=b"x" * 10_001)
        chunked = await http.post("/v2/models/m/infer", content=_chunks(50_000))

    assert fits.json()["bytes"] == 10_000
    for refused in (sized, chunked):
        assert refused.status_code == 413
        assert refused.json()["error"]


async def test_a_grpc_message_over_the_limit_is_resource_exhausted(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")), max_body_bytes=100_000)

    async with InferenceServerClient(grpc_target(gateway)) as triton:
        await triton.infer("m", [_tensor(90_000)])
        with pytest.raises(InferenceServerException) as caught:
            await triton.infer("m", [_tensor(2 << 20)])

    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


async def test_a_grpc_message_as_large_as_the_limit_is_routed_by_its_name(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with InferenceServerClient(grpc_target(gateway)) as triton:
        result = await triton.infer("m", [_tensor(60 << 20)])

    assert result.get_response().model_version == "1"


async def test_an_endpoint_that_is_too_slow_answers_504_in_json(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1"), timeout_s=0.1))

    async with client(gateway) as http:
        answer = await http.post("/v2/models/m/infer", content=b"sleep-for-ever")

    assert answer.status_code == 504
    assert answer.json() == {"error": TOO_SLOW}


async def test_a_grpc_call_that_is_too_slow_is_deadline_exceeded(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1"), timeout_s=0.1))

    async with InferenceServerClient(grpc_target(gateway)) as triton:
        with pytest.raises(InferenceServerException) as caught:
            await triton.infer("m", [_tensor(1)], request_id="sleep-for-ever")

    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert caught.value.message() == TOO_SLOW


async def test_more_requests_than_the_circuit_allows_are_told_to_come_later(lab: Lab) -> None:
    replica = lab.replica("1")
    gateway = await lab.start(endpoint("m", replica), max_requests_per_replica=1)

    async with client(gateway) as http:
        answers = await asyncio.gather(
            *(http.get("/v2/models/m/infer?sleep_s=0.5") for _ in range(10))
        )

    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]
