"""What a replica records of single requests: traces and samples of payloads."""

import asyncio
import json

import msgspec
import numpy as np
import pytest

from headrace.observe.spans import SpanRecord
from headrace.protocol.grpc_wire import frame
from headrace.protocol.protos import message_class
from headrace.serving.application import Application
from headrace.serving.exchange import Exchange
from headrace.serving.internal import RECORD_LEASE_S
from headrace.serving.telemetry.report import AnswersPage, PayloadSample, SamplesPage, SpansPage
from headrace.serving.v2 import V2Api
from tests.unit.serving.parts import (
    BAD,
    Caller,
    an_application,
    infer_body,
    read,
)

pytestmark = pytest.mark.anyio

INFER = "/v2/models/m/infer"
TRACE, PARENT = "a" * 32, "b" * 16
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1"}


async def ask(
    application: Application,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Exchange:
    exchange = Caller().request(method, path, body, headers)
    application.handle(exchange)
    for _ in range(5):
        await asyncio.sleep(0)
    return exchange


async def record(application: Application, **wanted: object) -> Exchange:
    return await ask(application, "PUT", "/internal/record", json.dumps(wanted).encode())


async def infer(application: Application, *rows: tuple[float, float], **headers: str) -> Exchange:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await ask(application, "POST", INFER, infer_body(*rows), named)


async def spans(application: Application, after: int = 0) -> list[SpanRecord]:
    answer = await ask(application, "GET", f"/internal/spans?after={after}")
    return msgspec.json.decode(read(answer).body, type=SpansPage).spans


async def samples(application: Application, after: int = 0) -> list[PayloadSample]:
    answer = await ask(application, "GET", f"/internal/samples?after={after}")
    return msgspec.msgpack.decode(read(answer).body, type=SamplesPage).samples


async def test_a_traced_request_has_a_span_for_each_phase_under_its_callers() -> None:
    application = an_application(replica="m-1-0")
    await record(application, traces=True)

    await infer(application, (1, 2), **TRACED)
    found = await spans(application)

    own, *_ = found
    by_name = {span.name: span for span in found}
    assert {span.context.trace_id for span in found} == {TRACE}
    assert own.parent_id == PARENT
    assert own.is_server
    assert own.attributes["headrace.request_id"] == "r-1"
    assert by_name["runtime"].parent_id == by_name["batch"].context.span_id
    for name in ("queue", "batch", "postprocess"):
        assert by_name[name].parent_id == own.context.span_id
        assert own.begin_s <= by_name[name].begin_s <= by_name[name].end_s <= own.end_s


async def test_a_batch_links_the_traced_requests_in_it() -> None:
    application = an_application()
    await record(application, traces=True)
    first, second = (
        Caller().request("POST", INFER, infer_body((1, 2)), {"traceparent": parent})
        for parent in (f"00-{'1' * 32}-{PARENT}-01", f"00-{'2' * 32}-{PARENT}-01")
    )
    untraced = Caller().request("POST", INFER, infer_body((1, 2)))

    for exchange in (first, untraced, second):
        application.handle(exchange)
    for _ in range(5):
        await asyncio.sleep(0)
    found = await spans(application)

    batches = [span for span in found if span.name == "batch"]
    assert [span.attributes["headrace.batch.requests"] for span in batches] == [3, 3]
    assert [[link.trace_id[0] for link in span.links] for span in batches] == [["2"], ["1"]]


async def test_errors_are_in_the_span() -> None:
    application = an_application()
    await record(application, traces=True)

    await infer(application, (BAD, 2), **TRACED)
    await ask(application, "POST", INFER, b"{", TRACED)
    own = [span for span in await spans(application) if span.is_server]

    assert [span.error.partition(":")[0] for span in own] == ["INVALID_ARGUMENT"] * 2


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{PARENT}-00",
        f"01-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        "nonsense",
        "",
    ],
)
async def test_what_is_not_traced_leaves_nothing(header: str) -> None:
    application = an_application()
    await record(application, traces=True)

    exchange = await infer(application, (1, 2), traceparent=header)

    assert await spans(application) == []
    assert not exchange.observers


async def test_nothing_is_wrapped_until_somebody_asks_and_once_nobody_does() -> None:
    application = an_application()

    before = await infer(application, (1, 2), **TRACED)
    await record(application, traces=True, sample_ratio=1.0)
    await record(application)
    after = await infer(application, (1, 2), **TRACED)

    assert not before.observers
    assert not after.observers
    assert await spans(application) == []
    assert await samples(application) == []


async def test_grpc_calls_are_traced_as_well() -> None:
    application = an_application()
    await record(application, traces=True, sample_ratio=1.0)
    request = message_class("inference.ModelInferRequest")(model_name="m")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1.0, 2.0])

    await ask(
        application,
        "POST",
        "/inference.GRPCInferenceService/ModelInfer",
        frame(request.SerializeToString()),
        {"content-type": "application/grpc", **TRACED},
    )

    assert {span.context.trace_id for span in await spans(application)} == {TRACE}
    (sample,) = await samples(application)
    assert sample.trace_id == TRACE


async def test_a_page_is_given_again_until_the_next_is_asked_for() -> None:
    application = an_application()
    await record(application, sample_ratio=1.0)
    for name in "abc":
        await infer(application, (1, 2), x_request_id=name)

    first = [sample.request_id for sample in await samples(application)]
    again = [sample.request_id for sample in await samples(application, after=1)]
    last = await samples(application, after=3)

    assert (first, again, last) == (["a", "b", "c"], ["b", "c"], [])


async def test_a_sample_holds_request_and_answer_as_they_were() -> None:
    application = an_application()
    await record(application, sample_ratio=1.0)

    await infer(application, (1, 2), (3, 4), x_headrace_caller="shop", **TRACED)
    await infer(application, (BAD, 2))
    good, bad = await samples(application)

    (given,), (answered, *_) = good.inputs, good.outputs
    assert (good.request_id, good.caller, good.trace_id) == ("r-1", "shop", TRACE)
    assert (given.name, given.shape) == ("x", [2, 2])
    assert np.frombuffer(given.data, given.dtype).tolist() == [1, 2, 3, 4]
    assert np.frombuffer(answered.data, answered.dtype).tolist() == [2, 4, 6, 8]
    assert (bad.code, bad.outputs) == ("INVALID_ARGUMENT", [])


async def test_a_dropped_column_never_leaves_the_replica() -> None:
    application = an_application()
    await record(application, sample_ratio=1.0, drop=["input.x", "caller"])

    await infer(application, (1, 2), x_headrace_caller="shop")
    (sample,) = await samples(application)

    assert (sample.inputs, sample.caller) == ([], "")


async def test_copies_of_mirrored_requests_are_not_sampled() -> None:
    application = an_application()
    await record(application, sample_ratio=1.0)

    await infer(application, (1, 2), x_headrace_shadow="1")

    assert await samples(application) == []


async def test_a_rollout_still_sees_requests_that_are_recorded() -> None:
    application = an_application()
    await record(application, traces=True, sample_ratio=1.0)
    wanted = {"key": "r1", "predictions": True, "answers_percent": 100}
    await ask(application, "PUT", "/internal/observe", json.dumps(wanted).encode())

    for row in ((1, 2), (BAD, 2)):
        await infer(application, row, x_headrace_split="r1", **TRACED)
    page = read(await ask(application, "GET", "/internal/answers?after=0")).body

    answers = msgspec.msgpack.decode(page, type=AnswersPage).answers
    assert [answer.failed for answer in answers] == [False, True]
    assert len(await samples(application)) == 2


async def test_a_ratio_beyond_one_is_refused() -> None:
    assert read(await record(an_application(), sample_ratio=1.5)).status == 400


async def test_a_replica_that_is_not_told_again_records_no_more() -> None:
    application = an_application()
    await record(application, sample_ratio=1.0)
    await asyncio.sleep(RECORD_LEASE_S / 2)
    await record(application, sample_ratio=1.0)
    await asyncio.sleep(RECORD_LEASE_S - 1)
    await infer(application, (1, 2))
    kept = await samples(application)
    await asyncio.sleep(2)
    await infer(application, (1, 2))

    assert len(kept) == 1
    assert await samples(application) == []


async def test_while_nobody_asks_the_handlers_are_the_apis_own() -> None:
    application = an_application()

    def of_infer() -> object:
        return application.model_table[b"/v2/models/m/infer"][b"POST"]

    plain = of_infer()
    await record(application, traces=True)
    wrapped = of_infer()
    await record(application)

    assert isinstance(getattr(plain, "__self__", None), V2Api)
    assert not hasattr(wrapped, "__self__")
    assert of_infer() == plain
