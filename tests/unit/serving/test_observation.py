"""What a replica tells the control plane, and what it sees of answers while it is observed."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.core import Datatype, TensorSpec
from headrace.protocol import InferDecoder, InferEncoder
from headrace.protocol.grpc_codec import GrpcInferCodec
from headrace.protocol.grpc_wire import frame
from headrace.protocol.protos import message_class
from headrace.runtimes.gguf import LlmLoad
from headrace.serving.application import Application
from headrace.serving.exchange import Exchange
from headrace.serving.telemetry import observation
from headrace.serving.telemetry.report import AnswersPage, Observe, RecordedAnswer, as_asked
from tests.unit.engine.models import ROWS
from tests.unit.serving.parts import (
    BAD,
    Caller,
    a_model,
    a_state,
    an_application,
    error_of,
    infer_body,
    read,
)

pytestmark = pytest.mark.anyio

INFER = "/v2/models/m/infer"
SPLIT = {"x-headrace-split": "r1", "x-request-id": "a"}
ALL = {"key": "r1", "predictions": True, "answers_percent": 100}
PAIRS = {"key": "r1", "answers_percent": 100, "pairs": True}
PAIR = SPLIT | {"x-headrace-pair": "p"}


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


async def observe(application: Application, **wanted: object) -> Exchange:
    return await ask(application, "PUT", "/internal/observe", json.dumps(wanted).encode())


async def report(application: Application) -> dict[str, Any]:
    answer: dict[str, Any] = read(await ask(application, "GET", "/internal/report")).json
    return answer


async def answers(application: Application, after: str = "0") -> list[RecordedAnswer]:
    page = await ask(application, "GET", f"/internal/answers?after={after}")
    return msgspec.msgpack.decode(read(page).body, type=AnswersPage).answers


def values(answer: RecordedAnswer) -> list[list[float]]:
    """What a shadow's answer is compared by, output for output."""
    return [np.frombuffer(one.data, one.dtype).tolist() for one in answer.outputs]


async def infer(
    application: Application, *rows: tuple[float, float], headers: dict[str, str] | None = None
) -> Exchange:
    return await ask(application, "POST", INFER, infer_body(*rows), headers or SPLIT)


async def test_a_report_counts_requests_and_describes_the_process() -> None:
    application = an_application(replica="m-1-0", intra_op_threads=2)
    await infer(application, (1, 2))
    await infer(application, (BAD, 2))

    told = await report(application)

    assert (told["replica"], told["model"], told["version"]) == ("m-1-0", "m", "1")
    assert told["ready"] is True
    assert (told["received"], told["answered"], told["failed"]) == (2, 1, 1)
    assert told["in_flight"] == told["queued"] == 0
    assert sum(told["request"]) == 1
    assert sum(told["queue_wait"]) == 2
    assert len(told["request"]) == len(told["queue_wait"]) == len(told["bounds_s"]) + 1
    assert told["peak_rss_bytes"] >= told["rss_bytes"] > 1 << 20
    assert told["cpu_s"] >= told["loop_s"] > 0
    assert told["request_s"] >= told["run_s"] > 0
    assert told["busy_s"] >= told["run_s"]
    assert told["intra_op_threads"] == 2
    assert told["max_concurrent_runs"] >= 1
    assert told["predictions"] is None
    assert told["observing"] == ""


async def test_requests_that_wait_are_in_flight() -> None:
    model = a_model()
    model.gate.clear()
    model.concurrent = False
    application = an_application(model=model)
    await infer(application, (1, 2))
    await infer(application, (3, 4))

    told = await report(application)

    model.gate.set()
    assert (told["received"], told["in_flight"], told["queued"]) == (2, 2, 1)


async def test_a_language_model_reports_the_requests_of_its_own_server() -> None:
    state = a_state(llm={"slots": 3})
    state.llm = LlmLoad(running=3, waiting=2, run_s=7.5)

    told = await report(Application(state, has_repository=False))

    assert (told["in_flight"], told["queued"], told["max_concurrent_runs"]) == (5, 2, 3)
    assert told["run_s"] == told["busy_s"] == 7.5
    assert told["received"] == told["answered"] == 0


async def test_a_replica_without_its_model_reports_that_it_is_not_ready() -> None:
    told = await report(Application(a_state(), has_repository=False))

    assert told["ready"] is False
    assert told["in_flight"] == told["max_concurrent_runs"] == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/internal/report"),
        ("PUT", "/internal/observe"),
        ("GET", "/internal/answers?after=1"),
    ],
)
async def test_internal_routes_are_on_the_unix_socket_only(method: str, path: str) -> None:
    exchange = Caller(is_local=False).request(method, path)
    an_application().handle(exchange)

    assert read(exchange).status == 404


async def test_predictions_are_counted_only_of_the_split_and_not_of_shadows() -> None:
    application = an_application()
    await infer(application, (1, 2))
    await observe(application, key="r1", predictions=True)
    await infer(application, (1, 2), (9, 0))
    await infer(application, (2, 1), headers={"x-headrace-split": "another"})
    await infer(application, (2, 1), headers={"x-request-id": "a"})
    await infer(application, (2, 1), headers=SPLIT | {"x-headrace-shadow": "1"})

    told = await report(application)

    counts = {"counts": {"1": 1}, "kind": "class", "output": "y", "skipped": 0}
    assert told["predictions"] == counts
    assert told["observing"] == as_asked(Observe(key="r1", predictions=True))


async def test_asking_for_the_same_again_counts_on_and_another_key_starts_anew() -> None:
    application = an_application()
    await observe(application, **ALL)
    await infer(application, (1, 2))
    await observe(application, **ALL)
    await observe(application, **(ALL | {"answers_percent": 99}))
    assert (await report(application))["predictions"]["counts"] == {"1": 1}
    assert len(await answers(application)) == 1

    await observe(application, **(ALL | {"key": "r2"}))

    assert (await report(application))["predictions"] is None
    assert await answers(application) == []


async def test_another_output_starts_counting_anew_and_keeps_answers() -> None:
    application = an_application()
    await observe(application, **(ALL | {"pairs": True}))
    await infer(application, (1, 2), headers=PAIR)
    await observe(application, **(ALL | {"pairs": True}), output="z")
    await infer(application, (1, 2), headers=PAIR)

    assert (await report(application))["predictions"]["counts"] == {"3.5": 1}
    assert list(map(values, await answers(application))) == [[[2.0, 4.0], [3.0]], [[3.0]]]


async def test_the_default_stops_looking() -> None:
    application = an_application()
    await observe(application, **ALL)
    await observe(application)
    await infer(application, (1, 2))

    told = await report(application)
    assert told["predictions"] is None
    assert told["observing"] == ""
    assert await answers(application) == []


async def test_answers_are_kept_with_id_unit_and_failure_until_they_were_fetched() -> None:
    application = an_application()
    await observe(application, key="r1", answers_percent=100)
    await infer(application, (1, 2), headers=SPLIT | {"x-headrace-unit": "ann"})
    await infer(application, (1, 2), headers={"x-headrace-shadow": "1", "x-request-id": "b"})
    await infer(application, (BAD, 2), headers=SPLIT | {"x-request-id": "c"})
    await ask(application, "POST", INFER, b"{}", SPLIT | {"x-request-id": "d"})
    await infer(application, (1, 2), headers={"x-headrace-split": "r1"})
    await infer(application, (1, 2), headers={"x-headrace-split": "r0", "x-headrace-shadow": "1"})

    found = await answers(application)

    assert [(answer.answer_id, answer.unit, answer.failed) for answer in found] == [
        ("a", "ann", False),
        ("b", "", False),
        ("c", "", True),
        ("d", "", True),
    ]
    assert not any(answer.outputs for answer in found)
    assert await answers(application, after="3") == found[3:]
    assert await answers(application) == found[3:]


async def test_answers_for_pairs_have_the_gateways_id_and_all_their_values() -> None:
    application = an_application()
    await observe(application, **PAIRS)
    for pair in ("p1", "p2"):
        await infer(application, (1, 2), headers=SPLIT | {"x-headrace-pair": pair})
    await infer(application, (1, 2), headers=PAIR | {"x-headrace-shadow": "1"})
    await infer(application, (BAD, 2), headers=PAIR)
    await infer(application, (1, 2))

    found = await answers(application)

    assert [(a.answer_id, a.failed) for a in found] == [
        ("p1", False),
        ("p2", False),
        ("p", False),
        ("p", True),
    ]
    assert [values(answer) for answer in found] == [[[2.0, 4.0], [3.0]]] * 3 + [[]]


async def test_an_answer_that_cannot_be_encoded_counts_as_failed() -> None:
    shapes = (TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),)
    model = a_model(replace(ROWS, outputs=(*shapes, *ROWS.outputs[1:])))
    model.run = lambda *_: {"y": np.array([["ann"]])}  # type: ignore[method-assign]  # a broken model
    application = an_application(model=model)
    await observe(application, **ALL)
    body = infer_body((1, 2), outputs=[{"name": "y", "parameters": {"classification": 1}}])
    exchange = await ask(application, "POST", INFER, body, SPLIT)

    assert read(exchange).status == 400
    assert [answer.failed for answer in await answers(application)] == [True]
    assert (await report(application))["predictions"] is None


def grpc_body(value: float) -> bytes:
    message = message_class("inference.ModelInferRequest")(model_name="m")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([value, 2])
    return frame(message.SerializeToString())


async def test_every_protocol_is_seen_alike() -> None:
    application = an_application()
    await observe(application, **(ALL | {"pairs": True}))
    raw = np.array([[1, 2]], np.float32).tobytes()
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 2],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    length = {"inference-header-content-length": str(len(head))}
    grpc = {"content-type": "application/grpc"}
    service = "/inference.GRPCInferenceService/ModelInfer"
    await infer(application, (1, 2), headers=PAIR)
    await ask(application, "POST", "/v2/models/m/versions/1/infer", head + raw, PAIR | length)
    await ask(application, "POST", "/v1/models/m:predict", b'{"instances": [[1, 2]]}', PAIR)
    await ask(application, "POST", service, grpc_body(1), PAIR | grpc)
    await ask(application, "POST", service, grpc_body(BAD), PAIR | grpc)

    found = await answers(application)

    assert [answer.failed for answer in found] == [False] * 4 + [True]
    assert [answer.outputs for answer in found[1:4]] == [found[0].outputs] * 3
    assert values(found[0]) == [[2.0, 4.0], [3.0]]
    assert (await report(application))["predictions"]["counts"] == {"1": 4}


@pytest.mark.parametrize("is_encoding", [False, True])
async def test_a_bug_is_an_internal_error_in_the_callers_protocol(
    monkeypatch: pytest.MonkeyPatch, *, is_encoding: bool
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    step = "encode" if is_encoding else "decode"
    coders = (InferEncoder, GrpcInferCodec) if is_encoding else (InferDecoder, GrpcInferCodec)
    for coder in coders:
        monkeypatch.setattr(coder, step, broken)
    application = an_application()
    await observe(application, **ALL)
    grpc = SPLIT | {"content-type": "application/grpc"}
    service = "/inference.GRPCInferenceService/ModelInfer"
    plain = await infer(application, (1, 2), headers=SPLIT)
    call = await ask(application, "POST", service, grpc_body(1), grpc)

    assert read(plain).status == 500
    assert "internal error" in error_of(plain)
    assert read(call).status == 200
    assert "grpc-status: 13\r\ngrpc-message: internal error" in read(call).head
    assert [answer.failed for answer in await answers(application)] == [True, True]


async def test_trouble_while_looking_spoils_no_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(observation, "compared_tensors", broken)
    application = an_application()
    await observe(application, **PAIRS)
    exchange = await infer(application, (1, 2), headers=PAIR)

    assert read(exchange).status == 200
    assert "cannot observe a response" in caplog.text


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/internal/observe", b'{"key": "r1", "answers_percent": 101}', "0 to 100, got 101"),
        ("/internal/observe", b'{"kye": "r1"}', "unknown field `kye`"),
        ("/internal/observe", b"{", "truncated"),
        ("/internal/answers?after=-1", b"", "cursor of a previous page"),
        ("/internal/answers?after=1" + "0" * 18, b"", "cursor of a previous page"),
    ],
)
async def test_what_makes_no_sense_is_refused(path: str, body: bytes, message: str) -> None:
    method = "PUT" if body else "GET"
    exchange = await ask(an_application(), method, path, body)

    assert read(exchange).status == 400
    assert message in error_of(exchange)
