"""A model is profiled where it can spoil nothing, and a replica of its own is asked."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.control.base.home import Home
from headrace.control.local.sandbox import Sandbox
from headrace.control.sandboxed.profile import measure, replica_overhead
from headrace.core import CodeNotAllowedError, UnavailableError, UnsupportedModelError
from headrace.optimize.profiling.messages import Event, GridCell, Measured, ProfileRequest
from headrace.testing import models
from tests.e2e.cli.conftest import Shell

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WILD = """
import ctypes, os, time
import numpy as np

class Wild:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}
    batched = True
    runs = 0

    def infer(self, inputs):
        self.runs += 1
        if len(inputs["x"]) > 1:
            ACT
        return {"y": inputs["x"] * np.float32(2)}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        Path(directory).chmod(0o755)
        (Path(directory) / "home").mkdir()
        yield Path(directory)


def wild(folder: Path, act: str, *, budget_s: float = 1.0) -> ProfileRequest:
    model = folder / "wild"
    model.mkdir()
    (model / "model.py").write_text(WILD.replace("ACT", act))
    return ProfileRequest(
        path=str(model), runtime="python", allow_code=True, budget_s=budget_s, threads=(1,)
    )


def profile(
    folder: Path,
    request: ProfileRequest,
    on_event: Callable[[Event], None] = lambda _: None,
    *,
    grace_s: float = 20.0,
) -> Measured:
    return measure(Sandbox.of_home(folder / "home"), request, on_event, grace_s=grace_s)


@pytest.mark.long
def test_a_model_that_hangs_is_ended_and_what_was_measured_stays(folder: Path) -> None:
    found = profile(folder, wild(folder, "time.sleep(600)"), grace_s=4.0)

    assert not found.complete
    assert {cell.rows for cell in found.cells} == {1}
    assert "took longer than its budget" in found.notes[-1]


@pytest.mark.long
def test_a_model_that_kills_its_process_leaves_what_was_measured(folder: Path) -> None:
    found = profile(folder, wild(folder, "ctypes.string_at(0)"))

    assert not found.complete
    assert "was ended by SIGSEGV" in found.notes[-1]


def test_what_a_model_prints_is_no_figure(folder: Path) -> None:
    act = """print('{"type":"done"}', flush=True)"""
    heard: list[Event] = []

    found = profile(folder, wild(folder, act, budget_s=5.0), heard.append)

    assert found.complete
    assert len({cell.rows for cell in found.cells}) > 1
    assert any(isinstance(event, GridCell) for event in heard)


def test_a_model_that_cannot_be_loaded_is_told_by_its_own_name(folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(b"\x08\x07nothing")

    with pytest.raises(UnsupportedModelError) as caught:
        profile(folder, ProfileRequest(path=str(path)))

    assert str(path) in str(caught.value)


def test_code_is_refused_unless_it_is_allowed(folder: Path) -> None:
    model = folder / "double"
    model.mkdir()
    (model / "model.py").write_text(models.python_double())

    with pytest.raises(CodeNotAllowedError):
        profile(folder, ProfileRequest(path=str(model)))


@pytest.mark.long
def test_a_replica_is_asked_what_a_request_costs(folder: Path) -> None:
    model = folder / "double"
    model.mkdir()
    (model / "model.py").write_text(models.python_double(delay_s=0.01))

    found = replica_overhead(
        model,
        runtime="python",
        sandbox=Sandbox.of_home(folder / "home"),
        cores=1,
        length=0,
        budget_s=2.0,
    )

    assert found.count >= 60
    assert 0.010 <= found.run_s < 0.05
    assert found.wall_s > found.wake_s + found.cpu_s > 0.0


def test_a_replica_that_does_not_start_says_why(folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(b"\x08\x07nothing")

    with pytest.raises(UnavailableError, match="ended with status 3"):
        replica_overhead(
            path,
            runtime="onnx",
            sandbox=Sandbox.of_home(folder / "home"),
            cores=1,
            length=0,
            budget_s=1.0,
        )


@pytest.mark.long
def test_a_model_is_profiled_served_tuned_and_profiled_as_an_endpoint(folder: Path) -> None:
    shell = Shell(folder=folder)
    (folder / "m.onnx").write_bytes(models.mlp())
    (folder / "headrace.yaml").write_text(
        "gateway: {http_port: 0, grpc_port: 0}\n"
        "endpoints: [{name: m, model: m.onnx, batching: {max_batch_size: 7}}]\n"
    )

    profiled = shell.run("profile", "m.onnx", "--budget", "3s", "--json", "--rows", "1,4")
    assert profiled.returncode == 0, profiled.stderr
    document = json.loads(profiled.stdout)
    ports = ("--metrics-port", "0", "--admin-port", "0")
    started = shell.run("up", "headrace.yaml", "--tuned", "--detach", *ports)
    try:
        assert started.returncode == 0, started.stderr
        (settings,) = Home(folder / "home").replica_settings.glob("*.json")
        told = json.loads(settings.read_text())
        endpoint = shell.run("profile", "m", "--budget", "3s", "--json", "--rows", "1", "--no-save")
    finally:
        shell.run("down")

    assert document["overhead"]["way"] == "a replica over its socket"
    assert document["prediction"]["capacity"] > 0
    assert document["measured"]["complete"]
    assert "from the profile of" in started.stderr
    assert "batching.max_batch_size" not in started.stderr
    assert told["batching"]["max_batch_size"] == 7
    runs = document["recommendation"]["max_concurrent_runs"]
    assert told["batching"]["max_concurrent_runs"] == runs <= len(os.sched_getaffinity(0))
    assert told["intra_op_threads"] == document["recommendation"]["intra_op_threads"]
    assert endpoint.returncode == 0, endpoint.stderr
    through = json.loads(endpoint.stdout)
    assert through["overhead"]["way"] == "the gateway"
    assert through["model"] == "m:1"
