"""From start to stop, and through every death in between."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.control import read_control_file, start_detached
from headrace.core import DeadlineExceededError, FailedPreconditionError
from tests.e2e.control.system import System, Traffic, replicas

pytestmark = pytest.mark.e2e


def test_a_model_file_becomes_an_endpoint_and_stop_leaves_nothing(
    system: System, mlp: Path
) -> None:
    system.start({"name": "m", "model": str(mlp), "replicas": 2})
    status = system.wait_ready()
    code, answer = system.infer("m")
    running = system.processes()
    stopped = system.end_control()

    assert code == 200
    assert answer["model_version"] == "1"
    assert len(replicas(status, "m")) == 2
    assert len(running) == 3  # two replicas and Envoy
    assert stopped == 0
    assert system.processes() == []
    assert read_control_file(system.home) is None
    assert list((system.home / "run" / "replicas").iterdir()) == []


@pytest.mark.parametrize(
    "end", [pytest.param(System.kill_control, marks=pytest.mark.long), System.end_control]
)
def test_traffic_outlives_the_control_plane_and_the_next_one_adopts(
    system: System, mlp: Path, end: Callable[[System], object]
) -> None:
    system.start({"name": "m", "model": str(mlp), "replicas": 2}, leaves_running=True)
    before = system.wait_ready()
    where = system.where()

    with Traffic(system, "m").flowing() as traffic:
        time.sleep(0.3)
        end(system)
        time.sleep(0.5)
        system.start()
        after = system.wait_ready()
        time.sleep(0.5)

    assert traffic.failures == []
    assert len(traffic.statuses) > 50
    assert after["gateway"]["pid"] == before["gateway"]["pid"]
    assert [r["pid"] for r in replicas(after, "m")] == [r["pid"] for r in replicas(before, "m")]
    assert [r["restarts"] for r in replicas(after, "m")] == [0, 0]
    assert system.where().http_url == where.http_url
    assert system.where().admin_url == where.admin_url


@pytest.mark.long
def test_the_same_spec_again_after_a_crash_changes_nothing(system: System, mlp: Path) -> None:
    endpoint = {"name": "m", "model": str(mlp)}
    system.start(endpoint)
    before = system.wait_ready()
    system.kill_control()
    system.start(endpoint)
    after = system.wait_ready()

    assert after["generation"] == before["generation"]
    assert replicas(after, "m")[0]["pid"] == replicas(before, "m")[0]["pid"]


def test_a_killed_replica_is_started_again_and_costs_only_what_it_was_doing(
    system: System, mlp: Path
) -> None:
    system.start({"name": "m", "model": str(mlp), "replicas": 2})
    status = system.wait_ready()
    victim = replicas(status, "m")[0]

    with Traffic(system, "m").flowing() as traffic:
        time.sleep(0.2)
        os.kill(victim["pid"], signal.SIGKILL)
        after = system.wait_for(
            lambda s: s["ready"] and replicas(s, "m")[0]["pid"] != victim["pid"]
        )
        time.sleep(0.3)

    assert len(traffic.failures) <= 4  # one for each caller at most
    assert replicas(after, "m")[0]["restarts"] == 1
    assert replicas(after, "m")[0]["name"] == victim["name"]


@pytest.mark.long
def test_an_adopted_replica_that_dies_is_started_again(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    system.wait_ready()
    system.kill_control()
    system.start()
    victim = replicas(system.wait_ready(), "m")[0]
    os.kill(victim["pid"], signal.SIGKILL)
    after = system.wait_for(lambda s: s["ready"] and replicas(s, "m")[0]["pid"] != victim["pid"])

    assert replicas(after, "m")[0]["restarts"] == 1
    assert system.infer("m")[0] == 200


@pytest.mark.long
def test_a_replica_that_died_unwatched_is_started_again(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    victim = replicas(system.wait_ready(), "m")[0]
    system.kill_control()
    os.kill(victim["pid"], signal.SIGKILL)
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == victim["pid"]], timeout=5)
    system.start()
    system.wait_ready()

    assert system.infer("m")[0] == 200


def test_a_killed_gateway_is_started_again_on_the_same_port(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    before = system.wait_ready()
    os.kill(before["gateway"]["pid"], signal.SIGKILL)
    after = system.wait_for(
        lambda s: s["ready"] and s["gateway"]["pid"] != before["gateway"]["pid"]
    )

    assert after["gateway"]["restarts"] == 1
    assert system.infer("m")[0] == 200


@pytest.mark.long
def test_a_new_version_and_a_new_weight_lose_no_request(
    system: System, mlp: Path, other_mlp: Path
) -> None:
    system.start({"name": "m", "model": str(mlp)})
    system.wait_ready()

    with Traffic(system, "m").flowing() as traffic:
        time.sleep(0.2)
        one = {"name": "m", "model": str(other_mlp)}
        code, applied = system.post("/api/v1/apply?wait_s=60", {"version": 1, "endpoints": [one]})
        split = {
            "name": "m",
            "versions": [{"model": "m:1", "weight": 50}, {"model": "m:2", "weight": 50}],
        }
        again, _ = system.post("/api/v1/apply?wait_s=60", {"version": 1, "endpoints": [split]})
        time.sleep(0.5)
        back, _ = system.post("/api/v1/apply?wait_s=60", {"version": 1, "endpoints": [one]})
        time.sleep(0.3)
    status = system.wait_for(lambda s: len(replicas(s, "m")) == 1)

    assert (code, again, back) == (200, 200, 200)
    assert applied["ready"] is True
    assert applied["generation"] == 2
    assert traffic.failures == []
    assert traffic.versions[0] == "1"
    assert traffic.versions[-1] == "2"
    assert replicas(status, "m")[0]["name"].startswith("m-2-")


@pytest.mark.long
def test_a_model_that_stops_loading_shows_the_reason_and_does_not_disturb_the_others(
    system: System, mlp: Path, tmp_path: Path, open_folder: Path
) -> None:
    flag = open_folder / "broken"
    model = tmp_path / "moody.py"
    model.write_text(_MOODY.replace("FLAG", str(flag)))
    system.start({"name": "m", "model": str(mlp)}, {"name": "moody", "model": str(model)})
    status = system.wait_ready()
    flag.touch()
    os.kill(replicas(status, "moody")[0]["pid"], signal.SIGKILL)
    after = system.wait_for(lambda s: any(e["failed"] for e in s["endpoints"]))
    moody = next(e for e in after["endpoints"] if e["name"] == "moody")
    row = next(r for r in system.post("/v2/repository/index")[1] if r["name"] == "moody")

    assert "cannot load the model" in moody["message"]
    assert "out of sorts" in moody["message"]
    assert row["state"] == "UNAVAILABLE"
    assert "out of sorts" in row["reason"]
    assert system.infer("m")[0] == 200
    assert system.infer("moody")[0] == 503


@pytest.mark.long
def test_a_taken_port_is_named_before_anything_was_started(system: System, mlp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        system.start({"name": "m", "model": str(mlp)}, http_port=port)
        assert system.process is not None
        code = system.process.wait(30)

    assert code == 1
    assert f"port {port}" in system.log_text()
    assert "--http-port" in system.log_text()
    assert system.processes() == []


@pytest.mark.long
def test_a_second_control_plane_on_one_home_is_refused(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    system.wait_ready()

    with pytest.raises(FailedPreconditionError, match=rf"pid {system.where().pid}\b"):
        start_detached(system.settings(), timeout_s=30)
    assert system.infer("m")[0] == 200


@pytest.mark.long
def test_detached_start_returns_once_a_request_was_answered(system: System, mlp: Path) -> None:
    settings = system.settings({"name": "m", "model": str(mlp)})
    found = start_detached(settings, timeout_s=60)
    code, _ = system.infer("m")
    stopping, _ = system.post("/api/v1/stop")
    gone = _wait_gone(found.pid)

    assert code == 200
    assert stopping == 202
    assert gone
    assert system.processes() == []


@pytest.mark.long
def test_detached_start_tells_what_is_wrong_with_the_spec(system: System, tmp_path: Path) -> None:
    corrupt = tmp_path / "bad.onnx"
    corrupt.write_bytes(b"no model")
    settings = system.settings(
        {"name": "bad", "model": str(corrupt)}, {"name": "lost", "model": "/nowhere/m.onnx"}
    )

    with pytest.raises(FailedPreconditionError) as caught:
        start_detached(settings, timeout_s=60)
    assert "endpoints[0].model" in str(caught.value)
    assert "endpoints[1].model" in str(caught.value)
    assert "/nowhere/m.onnx" in str(caught.value)
    assert read_control_file(system.home) is None
    assert system.processes() == []


@pytest.mark.long
def test_a_bad_spec_does_not_end_a_system_that_ran_before(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    url = system.wait_ready()["endpoints"][0]["url"]
    system.kill_control()
    bad = system.settings({"name": "lost", "model": "/nowhere/m.onnx"})

    with pytest.raises(FailedPreconditionError, match="/nowhere"):
        start_detached(bad, timeout_s=60)
    assert system.call("GET", url.removesuffix("/infer"))[0] == 200
    assert len(system.processes()) == 2


@pytest.mark.long
def test_a_model_that_answers_nobody_is_no_start(system: System, tmp_path: Path) -> None:
    model = tmp_path / "grumpy.py"
    model.write_text(_GRUMPY.replace("FLAG", str(tmp_path / "never")))
    settings = system.settings({"name": "grumpy", "model": str(model)})

    with pytest.raises(FailedPreconditionError, match="grumpy"):
        start_detached(settings, timeout_s=60)
    assert system.processes() == []


def test_an_endpoint_that_did_not_answer_is_asked_again_and_what_the_model_raises_is_a_note(
    system: System, mlp: Path, tmp_path: Path, open_folder: Path
) -> None:
    flag = open_folder / "there"
    model = tmp_path / "grumpy.py"
    model.write_text(_GRUMPY.replace("FLAG", str(flag)))
    system.start({"name": "m", "model": str(mlp)}, {"name": "grumpy", "model": str(model)})

    def grumpy(status: Any) -> Any:
        return next(e for e in status["endpoints"] if e["name"] == "grumpy")

    before = system.wait_for(lambda status: grumpy(status)["failed"])
    flag.touch()
    after = system.wait_ready()

    assert "the database is not there yet" in grumpy(before)["message"]
    assert "HTTP status 500" in grumpy(after)["note"]
    assert "made-up rows are not for me" in grumpy(after)["note"]
    assert system.infer("m")[0] == 200


@pytest.mark.long
def test_load_and_unload_of_triton_add_and_remove_an_endpoint(
    system: System, mlp: Path, other_mlp: Path
) -> None:
    system.start({"name": "a", "model": str(mlp)})
    system.wait_ready()
    system.post("/api/v1/apply?wait_s=60", {"endpoints": [{"name": "b", "model": str(other_mlp)}]})
    loaded, _ = system.post("/v2/repository/models/a/load")
    answered, _ = system.infer("a")
    old = replicas(system.status(), "a")[0]["pid"]
    reloaded, _ = system.post("/v2/repository/models/a/load", {})
    after = system.wait_for(lambda s: [r["pid"] != old for r in replicas(s, "a")] == [True])
    index = system.post("/v2/repository/index", {"ready": True})[1]
    unloaded, _ = system.post("/v2/repository/models/a/unload")
    missing, problem = system.post("/v2/repository/models/a/unload")
    unknown, why = system.post("/v2/repository/models/nobody/load")
    gone = system.wait_for(lambda s: len(s["endpoints"]) == 1)

    assert (loaded, answered, reloaded, unloaded, missing) == (200, 200, 200, 200, 404)
    assert after["ready"]
    assert [(row["name"], row["state"]) for row in index] == [("a", "READY"), ("b", "READY")]
    assert "'a'" in problem["error"]
    assert unknown == 400
    assert "nobody" in why["error"]
    assert gone["endpoints"][0]["name"] == "b"


@pytest.mark.long
def test_a_triton_repository_gives_an_endpoint_for_each_of_its_models(
    system: System, mlp: Path, other_mlp: Path, tmp_path: Path
) -> None:
    for name, version, source in (("x", 3, mlp), ("x", 10, other_mlp), ("y", 1, mlp)):
        target = tmp_path / "repository" / name / str(version) / "model.onnx"
        target.parent.mkdir(parents=True)
        target.write_bytes(source.read_bytes())
    system.start({"name": "all", "model": str(tmp_path / "repository")})
    status = system.wait_ready()
    code, answer = system.infer("x")

    assert [e["name"] for e in status["endpoints"]] == ["x", "y"]
    assert code == 200
    assert answer["model_version"] == "10"


@pytest.mark.long
def test_metrics_of_all_processes_are_one_valid_exposition(system: System, mlp: Path) -> None:
    from prometheus_client.parser import (  # noqa: PLC0415  # ships with the test
        text_string_to_metric_families,
    )

    system.start({"name": "m", "model": str(mlp), "replicas": 2})
    system.wait_ready()
    for _ in range(4):
        system.infer("m")
    with urllib.request.urlopen(system.where().metrics_url) as answer:  # noqa: S310  # loopback
        text = answer.read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    success = families["nv_inference_request_success"]

    assert {sample.labels["replica"] for sample in success.samples} == {"m-1-1", "m-1-2"}
    assert sum(sample.value for sample in success.samples) >= 5
    assert any(name.startswith("envoy_") for name in families)
    assert text.count("# TYPE nv_inference_request_success ") == 1


@pytest.mark.long
def test_statistics_over_the_gateway_count_all_replicas(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp), "replicas": 2})
    system.wait_ready()
    for _ in range(6):
        system.infer("m")
    _, answer = system.call("GET", f"{system.where().http_url}/v2/models/stats")

    assert len(answer["model_stats"]) == 1
    assert answer["model_stats"][0]["inference_count"] == 7  # with the first request


@pytest.mark.long
def test_one_log_stream_has_every_process(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)}, copy_logs=True, log_format="json")
    system.wait_ready()
    system.infer("m")
    lines = system.get("/api/v1/logs?format=json&tail=500").splitlines()
    rows = [json.loads(line) for line in lines]
    access = _logged_refusal(system)
    unknown, problem = system.manage("GET", "/api/v1/logs?source=../../etc/passwd")
    system.end_control()

    assert {"control", "m-1-1"} <= {row["source"] for row in rows}
    assert [row["time"] for row in rows if "time" in row] == sorted(
        row["time"] for row in rows if "time" in row
    )
    assert "/v2/models/m/infer" in access
    assert unknown == 400
    assert "access, control, gateway, m-1-1" in problem["detail"], problem
    assert {"control", "m-1-1"} <= {
        json.loads(line)["source"] for line in system.log_text().splitlines()
    }


def test_wrong_specs_are_answered_with_all_mistakes_and_change_nothing(
    system: System, mlp: Path
) -> None:
    system.start({"name": "m", "model": str(mlp)})
    before = system.wait_ready()
    code, problem = system.post(
        "/api/v1/apply", {"endpoints": [{"name": "a b", "modle": "x"}], "gatway": {}}
    )

    assert code == 400
    assert problem["code"] == "INVALID_ARGUMENT"
    assert {"endpoints[0].name", "endpoints[0].modle", "gatway"} <= {
        mistake["place"] for mistake in problem["errors"]
    }
    assert system.status()["generation"] == before["generation"]


def _logged_refusal(system: System) -> str:
    """The access log's last line, of a request that fails: of others there is a sample only."""
    system.call("POST", f"{system.where().http_url}/v2/models/m/infer", {})
    until = time.monotonic() + 10.0
    while time.monotonic() < until:
        if (line := system.manage("GET", "/api/v1/logs?source=access&tail=1")[1]) is not None:
            return str(line)
        time.sleep(0.1)
    return ""


def _wait_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return not psutil.pid_exists(pid)


_PYTHON_MODEL = """\
import pathlib


class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}
    batched = True
    concurrent = False

"""

_MOODY = (
    _PYTHON_MODEL
    + """\
    def load(self, path):
        if pathlib.Path("FLAG").exists():
            raise OSError("out of sorts")

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""
)

_GRUMPY = (
    _PYTHON_MODEL
    + """\
    def infer(self, inputs):
        from headrace.core import UnavailableError
        if not pathlib.Path("FLAG").exists():
            raise UnavailableError("the database is not there yet")
        raise ValueError("made-up rows are not for me")
"""
)


_SLOW = (
    _PYTHON_MODEL
    + """\\
    def infer(self, inputs):
        import time
        if inputs["x"].max() > 5:
            time.sleep(SECONDS)
        return {"y": inputs["x"]}
"""
)
_SLOW_ROW = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [9, 9]}]}


def slow_model(directory: Path, seconds: float) -> Path:
    path = directory / "slow.py"
    path.write_text(_SLOW.replace("SECONDS", str(seconds)))
    return path


@pytest.mark.long
def test_stop_lets_a_running_request_end(system: System, tmp_path: Path) -> None:
    system.start({"name": "slow", "model": str(slow_model(tmp_path, 1.0))})
    system.wait_ready()
    answers: list[int] = []
    caller = threading.Thread(
        target=lambda: answers.append(system.infer("slow", _SLOW_ROW)[0]), daemon=True
    )
    caller.start()
    time.sleep(0.3)
    stopped = system.end_control()
    caller.join(10)

    assert answers == [200]
    assert stopped == 0
    assert system.processes() == []


def test_ctrl_c_stops_what_sigterm_leaves(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)}, leaves_running=True)
    system.wait_ready()
    left = system.end_control()
    running = system.processes()
    system.start(leaves_running=True)
    system.wait_ready()
    assert system.process is not None
    system.process.send_signal(signal.SIGINT)
    stopped = system.process.wait(30)

    assert (left, stopped) == (0, 0)
    assert len(running) == 2  # a replica and Envoy
    assert system.processes() == []


@pytest.mark.long
def test_a_second_signal_does_not_wait(system: System, tmp_path: Path) -> None:
    system.start({"name": "slow", "model": str(slow_model(tmp_path, 20.0))}, drain_timeout_s=30.0)
    system.wait_ready()
    caller = threading.Thread(target=_ignore_end, args=(system,), daemon=True)
    caller.start()
    time.sleep(0.3)
    assert system.process is not None
    began = time.monotonic()
    system.process.terminate()
    time.sleep(0.5)
    still_draining = system.process.poll() is None
    system.process.send_signal(signal.SIGINT)
    system.process.wait(20)
    caller.join(10)

    assert still_draining
    assert time.monotonic() - began < 10
    assert "second signal" in system.log_text()
    assert system.processes() == []


def _ignore_end(system: System) -> None:
    with contextlib.suppress(OSError):
        system.infer("slow", _SLOW_ROW)


@pytest.mark.long
def test_other_ports_after_a_crash_replace_the_gateway_and_keep_the_replicas(
    system: System, mlp: Path
) -> None:
    system.start({"name": "m", "model": str(mlp)})
    before = system.wait_ready()
    system.kill_control()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    system.start(http_port=port)
    after = system.wait_ready()

    assert system.where().http_url == f"http://127.0.0.1:{port}"
    assert after["gateway"]["pid"] != before["gateway"]["pid"]
    assert replicas(after, "m")[0]["pid"] == replicas(before, "m")[0]["pid"]
    assert system.infer("m")[0] == 200


@pytest.mark.long
def test_detached_start_gives_up_in_time_and_leaves_nothing(system: System, tmp_path: Path) -> None:
    model = tmp_path / "late.py"
    model.write_text(
        _PYTHON_MODEL
        + """
    def load(self, path):
        import sys, time
        if "serving" in sys.argv[0] and "inspection" not in sys.argv[0]:
            time.sleep(30)

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""
    )
    settings = system.settings({"name": "late", "model": str(model)}, drain_timeout_s=1.0)

    with pytest.raises(DeadlineExceededError, match="not ready after 3 s"):
        start_detached(settings, timeout_s=3)
    assert system.processes() == []
    assert read_control_file(system.home) is None


def test_a_control_plane_that_dies_while_starting_is_told_by_its_last_words(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.control.app.detached._MODULE", "headrace.control.nowhere")

    with pytest.raises(FailedPreconditionError, match="No module named"):
        start_detached(system.settings(), timeout_s=30)


@pytest.mark.long
def test_a_gateway_that_cannot_start_again_is_told_and_tried_on(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    before = system.wait_ready()
    port = int(system.where().http_url.rpartition(":")[2])
    # Somebody takes the port in the moment between the gateway's end and its next start.
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(before["gateway"]["pid"], signal.SIGKILL)
        _bind_soon(thief, port)
        status = system.wait_for(lambda s: str(port) in s["gateway"]["reason"])
    after = system.wait_ready()

    assert status["ready"] is False
    assert after["gateway"]["restarts"] >= 1
    assert system.infer("m")[0] == 200


def _bind_soon(thief: socket.socket, port: int) -> None:
    for _ in range(2000):
        try:
            thief.bind(("127.0.0.1", port))
            thief.listen()
        except OSError:
            time.sleep(0.001)
        else:
            return
    raise AssertionError(f"port {port} never became free")


def test_a_home_that_moves_is_served_from_where_it_is_and_nothing_is_replaced(
    system: System, mlp: Path
) -> None:
    endpoint = {"name": "m", "model": str(mlp)}
    system.start(endpoint)
    before = system.wait_ready()
    # All dies at once, as when a machine does: records of replicas stay, and name the old place.
    system.kill_control()
    psutil.wait_procs(system.kill_processes(), timeout=10)
    moved = System(system.home.rename(system.home.with_name("moved")))
    try:
        moved.start()
        there = moved.wait_ready()
        code, applied = moved.post("/api/v1/apply", {"version": 1, "endpoints": [endpoint]})
        after = moved.status()
        answered = moved.infer("m")[0]
    finally:
        moved.close()

    assert (code, applied["changes"], answered) == (200, [], 200)
    assert revision_ids(before) == revision_ids(there) == revision_ids(after)
    assert [one["pid"] for one in replicas(after, "m")] == [
        one["pid"] for one in replicas(there, "m")
    ]


def revision_ids(status: Any) -> list[str]:
    return [one["id"] for each in status["endpoints"] for one in each["revisions"]]
