"""A model that mixes rows: found when it is declared independent, and never batched otherwise."""

import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import onnx
import pytest
from onnx import TensorProto, helper

from headrace.cli import main
from tests.e2e.control.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_CALLERS: Final = 8
_WITHIN_S: Final = 60.0


def centred(path: Path) -> Path:
    """Write a model whose `y` is `x` [N, 4] less the mean of the batch: 0 for a row alone."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y"))
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], name="mean_of_rows", keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"], name="centre"),
    ]
    graph = helper.make_graph(nodes, "centred", [x], [y], [axes])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def wrong_answers(system: System, stop: threading.Event) -> int:
    """How many of the answers to concurrent callers depended on another one."""

    def call(seed: int) -> int:
        numbers, wrong = random.Random(seed), 0  # noqa: S311  # made-up rows
        while not stop.is_set():
            row = [numbers.uniform(-5, 5) for _ in range(4)]
            tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}
            status, answer = system.infer("centred", {"inputs": [tensor]})
            assert status == 200, answer
            wrong += any(abs(value) > 1e-6 for value in answer["outputs"][0]["data"])
        return wrong

    with ThreadPoolExecutor(_CALLERS) as pool:
        return sum(pool.map(call, range(_CALLERS)))


def batching(system: System) -> Any:
    """What the first version of the endpoint says of batching; None while nothing is reported."""
    endpoint = system.get("/api/v1/endpoints/centred")
    revisions = endpoint["status"]["revisions"]
    return {one["version"]: one["batching"] for one in revisions}["1"]


def alerts(system: System) -> dict[str, Any]:
    return {one["name"]: one for one in system.get("/api/v1/alerts")["alerts"]}


def wait_until(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + _WITHIN_S
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return value


def entry(path: Path, pool: str, **settings: object) -> dict[str, Any]:
    batching = {"max_queue_delay_s": 0.01, **settings}
    return {
        "name": "centred",
        "model": str(path),
        "batching": batching,
        **({"pool": pool} if pool else {}),
    }


@pytest.mark.parametrize("pool", ["", "shared"])
def test_false_declaration_is_an_alert_and_without_it_answers_are_right(
    system: System, tmp_path: Path, capsys: pytest.CaptureFixture[str], pool: str
) -> None:
    path = centred(tmp_path / "centred.onnx")
    spec = {
        "version": 1,
        "endpoints": [entry(path, pool, rows_independent=True)],
        "pools": [{"name": "shared"}] if pool else [],
    }
    system.start(spec=spec)
    system.wait_ready()

    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(wrong_answers, system, stop)
        try:
            firing = wait_until(
                lambda: (
                    (alert := alerts(system).get("HeadraceRowsDiffer"))
                    and alert["state"] == "firing"
                    and alert
                ),
                "no alert",
            )
        finally:
            stop.set()
        assert calling.result() > 0

    assert "version 1: output 'y' differs by" in firing["summary"]
    assert "Remove `rows_independent`" in firing["action"]
    report = batching(system)
    assert report["batched"]
    assert (report["independence"], report["declared"]) == ("declared", True)
    assert report["checks"]["different"] >= 1
    assert report["difference"]["output"] == "y"
    conditions = system.get("/api/v1/endpoints/centred")["conditions"]
    [condition] = [one for one in conditions if one["type"] == "AnswersIndependent"]
    assert (condition["status"], condition["reason"]) == (False, "RowsDiffer")
    events = system.get("/api/v1/events?endpoint=centred")["events"]
    assert [one["reason"] for one in events if one["kind"] == "batching"] == ["RowsDiffer"]
    metrics = str(system.call("GET", system.where().metrics_url)[1])
    assert 'headrace_row_difference{endpoint="centred",version="1",output="y"}' in metrics
    assert re.search(r'headrace_row_checks_total\{[^}]*outcome="different"[^}]*\} [1-9]', metrics)
    assert main(["status", "--home", str(system.home)]) == 0
    assert "answers depend on other requests' rows: output 'y'" in capsys.readouterr().out

    assert system.manage("PUT", "/api/v1/endpoints/centred?wait_s=30", entry(path, pool))[0] == 200
    system.wait_ready()
    report = wait_until(lambda: (r := batching(system)) and not r["batched"] and r, "no report")
    assert report["independence"] != "declared"
    assert report["difference"] is None
    assert report["reason"]
    stop = threading.Event()
    threading.Timer(2.0, stop.set).start()
    assert wrong_answers(system, stop) == 0
    wait_until(
        lambda: alerts(system)["HeadraceRowsDiffer"]["state"] == "resolved", "the alert stays"
    )
    assert main(["status", "--home", str(system.home)]) == 0
    assert f"one request at a time: {report['reason']}"[:60] in capsys.readouterr().out
