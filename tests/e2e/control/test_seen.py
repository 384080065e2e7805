"""A request is seen from end to end: one trace, a line of the log, a row of the payload log."""

import json
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from headrace.protocol.protos import message_class
from tests.e2e.control.collector import Collector, Span, collecting
from tests.e2e.control.system import ROW, System

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BAD = {"inputs": [{**ROW["inputs"][0], "shape": [1, 31], "data": [0.5] * 31}]}
INFER = "/inference.GRPCInferenceService/ModelInfer"
PARENT = "b" * 16


def _spec(model: Path, collector: Collector) -> dict[str, Any]:
    return {
        "version": 1,
        "gateway": {"request_log": {"mode": "sampled", "sample_ratio": 0.0, "slow_s": 60.0}},
        "tracing": {"collector": collector.url, "sample_ratio": 0.0},
        "endpoints": [
            {
                "name": "m",
                "model": str(model),
                "payload_log": {"sample_ratio": 1.0, "hash": ["caller"]},
            },
            {"name": "quiet", "model": str(model), "request_log": {"mode": "all"}},
        ],
    }


def _traceparent(digit: str, flags: str = "01") -> str:
    return f"00-{digit * 32}-{PARENT}-{flags}"


def _infer(system: System, digit: str, document: object = ROW, flags: str = "01") -> int:
    url = f"{system.where().http_url}/v2/models/m/infer"
    headers = {"traceparent": _traceparent(digit, flags)}
    return httpx.post(url, json=document, headers=headers, timeout=30).status_code


def _infer_grpc(system: System, digit: str, columns: int = 32) -> str:
    """The status of a call."""
    request = message_class("inference.ModelInferRequest")(model_name="m")
    tensor = request.inputs.add(name="input", datatype="FP32", shape=[1, columns])
    tensor.contents.fp32_contents.extend([0.5] * columns)
    with grpc.insecure_channel(system.where().grpc_target) as channel:
        call = channel.unary_unary(
            INFER,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class("inference.ModelInferResponse").FromString,
        )
        try:
            call(request, timeout=30, metadata=[("traceparent", _traceparent(digit))])
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def _records(system: System) -> None:
    """Wait until the replica was told to record: requests before that leave nothing."""
    deadline = time.monotonic() + 60
    while not system.get("/api/v1/endpoints/m/payloads")["written"]:
        assert time.monotonic() < deadline, system.log_text()
        system.infer("m")
        time.sleep(0.2)


def _is_whole(spans: list[Span], digit: str) -> bool:
    mine = [span.service for span in spans if span.trace_id == digit * 32]
    return len(mine) >= 8 and len({*mine}) == 2


def _check_trace(spans: list[Span], digit: str) -> None:
    mine = {span.span_id: span for span in spans if span.trace_id == digit * 32}
    by_name = {span.name: span for span in mine.values()}
    (server,) = (span for span in mine.values() if span.name == "infer m")
    ancestors = []
    span = server
    while span.parent_id in mine:
        span = mine[span.parent_id]
        ancestors.append(span.service)
    assert ancestors == ["headrace-gateway", "headrace-gateway"]
    assert span.parent_id == PARENT
    for name in ("preprocess", "queue", "batch", "postprocess"):
        assert by_name[name].parent_id == server.span_id
    assert by_name["runtime"].parent_id == by_name["batch"].span_id
    assert by_name["batch"].attributes["headrace.batch.rows"] == 1


def test_a_request_leaves_a_trace_a_line_and_a_row(system: System, mlp: Path) -> None:
    with collecting() as collector:
        system.start(spec=_spec(mlp, collector), first_request=False)
        system.wait_ready()
        _records(system)

        assert _infer(system, "1") == 200
        assert _infer_grpc(system, "2") == "OK"
        assert _infer_grpc(system, "5", columns=31) == "INVALID_ARGUMENT"
        assert _infer(system, "3", BAD) == 400
        assert _infer(system, "4", flags="00") == 200
        assert system.infer("quiet")[0] == 200
        spans = collector.wait(
            lambda found: (
                _is_whole(found, "1")
                and _is_whole(found, "2")
                and any(s.trace_id[0] == "3" and s.service == "headrace" for s in found)
            )
        )

        _check_trace(spans, "1")
        _check_trace(spans, "2")
        assert any(s.is_error for s in spans if s.trace_id[0] == "3" and s.name == "infer m")
        assert {span.trace_id[0] for span in spans} == {"1", "2", "3", "5"}

        rows = _rows_with(system, {"1", "2", "3", "4"})
        metrics = str(system.call("GET", system.where().metrics_url)[1])
        assert rows["1"]["input.input"] == [0.5] * 32
        assert rows["1"]["input.input.shape"] == [1, 32]
        answers = [{k: v for k, v in rows[d].items() if k.startswith("output.")} for d in "12"]
        assert answers[0] == answers[1] != {}
        assert rows["3"]["code"] == "INVALID_ARGUMENT"
        assert 'headrace_payload_log_written_total{endpoint="m"}' in metrics
        assert "headrace_spans_sent_total" in metrics
        assert "headrace_spans_dropped_total 0" in metrics

        assert system.end_control() == 0
    log = system.home / "run" / "envoy" / "access.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["endpoint"], line["code"], line["grpc_status"]) for line in lines] == [
        ("m", 200, "INVALID_ARGUMENT"),
        ("m", 400, None),
        ("quiet", 200, None),
    ]
    assert [line["trace_id"] for line in lines[:2]] == ["5" * 32, "3" * 32]
    (closed,) = {path.suffix for path in (system.home / "payloads" / "m").iterdir()}
    assert closed == ".parquet"


@pytest.mark.long
def test_a_gateway_that_runs_logs_as_the_next_control_plane_says(system: System, mlp: Path) -> None:
    spec: dict[str, Any] = {"version": 1, "endpoints": [{"name": "m", "model": str(mlp)}]}
    silent = {**spec, "gateway": {"request_log": {"mode": "off"}}}
    system.start(spec=silent, first_request=False)
    pid = system.wait_ready()["gateway"]["pid"]
    assert system.infer("m")[0] == 200

    system.kill_control()
    talkative = {**spec, "gateway": {"request_log": {"mode": "all"}}}
    system.start(spec=talkative, first_request=False)
    assert system.wait_ready()["gateway"]["pid"] == pid
    assert system.infer("m")[0] == 200
    assert system.end_control() == 0

    log = system.home / "run" / "envoy" / "access.log"
    assert len(log.read_text().splitlines()) == 1


def _rows_with(system: System, digits: set[str]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        answer = system.get("/api/v1/endpoints/m/payloads/rows?limit=50")
        found = {row["trace_id"][:1]: row for row in answer["rows"] if len({*row["trace_id"]}) == 1}
        if digits <= found.keys():
            return found
        assert time.monotonic() < deadline, found.keys()
        time.sleep(0.1)
