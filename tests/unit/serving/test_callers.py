"""What the gateway says of a caller decides its place; what it wants to know it is told."""

import asyncio

import pytest

from headrace.protocol.grpc_wire import frame
from headrace.protocol.protos import message_class
from headrace.serving.application import Application
from tests.unit.serving.parts import (
    BAD,
    Answer,
    Caller,
    an_application,
    error_of,
    infer_body,
    read,
)

pytestmark = pytest.mark.anyio

INFER = "/v2/models/m/infer"
TWO_ROWS = infer_body((1, 2), (3, 4))
WANTED = {"x-headrace-want": "rows"}


async def ask(
    application: Application, path: str, body: bytes, headers: dict[str, str], method: str = "POST"
) -> Answer:
    exchange = Caller().request(method, path, body, headers)
    application.handle(exchange)
    for _ in range(5):
        await asyncio.sleep(0)
    return read(exchange)


async def test_rows_are_told_to_a_gateway_that_wants_to_know() -> None:
    application = an_application()

    told = await ask(application, INFER, TWO_ROWS, WANTED)
    compressed = await ask(application, INFER, TWO_ROWS, {**WANTED, "accept-encoding": "gzip"})
    untold = await ask(application, INFER, TWO_ROWS, {})

    assert "x-headrace-rows: 2" in told.head
    assert "x-headrace-rows: 2" in compressed.head
    assert "x-headrace-rows" not in untold.head


async def test_what_was_not_answered_counts_no_rows() -> None:
    application = an_application()

    failed = await ask(application, INFER, infer_body((BAD, BAD)), WANTED)
    unreadable = await ask(application, INFER, b"{", WANTED)
    metadata = await ask(application, "/v2/models/m", b"", WANTED, method="GET")

    for answer in (failed, unreadable, metadata):
        assert "x-headrace-rows: 0" in answer.head


async def test_rows_of_grpc_calls_are_told_and_none_of_failed_ones() -> None:
    application = an_application()
    request = message_class("inference.ModelInferRequest")(model_name="m")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[3, 2])
    tensor.contents.fp32_contents.extend([1.0] * 6)
    headers = {**WANTED, "content-type": "application/grpc"}
    path = "/inference.GRPCInferenceService/ModelInfer"

    answered = await ask(application, path, frame(request.SerializeToString()), headers)
    failed = await ask(application, path, frame(b"\xff"), headers)

    assert "x-headrace-rows: 3" in answered.head
    assert "grpc-status: 3" in failed.head
    assert "x-headrace-rows: 0" in failed.head


async def test_a_callers_floor_and_the_endpoints_aim_reach_the_queue() -> None:
    application = an_application()
    exchange = Caller().request(
        "POST", INFER, TWO_ROWS, {"x-headrace-priority": "4", "x-headrace-slo-s": "0.25"}
    )

    application.handle(exchange)

    assert (exchange.floor, exchange.level, exchange.slo_s) == (4, 4, 0.25)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-headrace-priority": "0"},
        {"x-headrace-priority": "10"},
        {"x-headrace-priority": "high"},
        {"x-headrace-slo-s": "soon"},
        {"x-headrace-slo-s": "-1"},
    ],
)
async def test_a_header_that_is_no_such_number_is_refused(headers: dict[str, str]) -> None:
    exchange = Caller().request("POST", INFER, TWO_ROWS, headers)

    an_application().handle(exchange)

    assert next(iter(headers)) in error_of(exchange)
