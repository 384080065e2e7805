"""One drifted feature of ten is named in a running system, and known after a crash."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.cli import main
from headrace.testing import models
from tests.e2e.control.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

FEATURES = 10
ROWS = 25
DRIFT = "/api/v1/endpoints/m/drift"


def send(system: System, random: np.random.Generator, requests: int, shift: float = 0.0) -> None:
    for _ in range(requests):
        table = random.normal(size=(ROWS, FEATURES))
        table[:, 3] += shift
        tensor = {"name": "input", "datatype": "FP32", "shape": [ROWS, FEATURES]}
        document = {"inputs": [{**tensor, "data": table.ravel().tolist()}]}
        assert system.infer("m", document)[0] == 200


def drift_when(system: System, rows: int) -> Any:
    """What is known once so many rows of the third input were judged."""
    deadline = time.monotonic() + 30
    while True:
        found = system.get(DRIFT)
        by_name = {one["name"]: one for one in found["features"]}
        if by_name and by_name["input[3]"]["rows"] >= rows:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_a_drifted_feature_is_named_and_still_known_after_a_crash(
    system: System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(7)
    path = tmp_path / "m.onnx"
    path.write_bytes(models.mlp(features=FEATURES))
    data = random.normal(size=(3000, FEATURES))
    names = ",".join(f"c{i}" for i in range(FEATURES))
    train = tmp_path / "train.csv"
    np.savetxt(train, data, fmt="%.5f", delimiter=",", header=names, comments="")
    endpoint = {"name": "m", "model": str(path), "drift": {}}
    system.start(endpoint, first_request=False)
    system.wait_ready()
    home = str(system.home)
    assert main(["drift", "reference", "set", "m", "-i", str(train), "--home", home]) == 0
    assert main(["drift", "m", "--home", home]) == 0
    assert "not enough rows to compare yet" in capsys.readouterr().err
    _wait_for_plan(system, random)

    send(system, random, 16)
    before = drift_when(system, 300)
    # Over several looks: of rows that come all at once nobody knows how alike they are.
    deadline = time.monotonic() + 60
    while (after := system.get(DRIFT))["state"] != "drifted" and time.monotonic() < deadline:
        send(system, random, 4, shift=1.0)
        time.sleep(1.0)

    assert before["state"] == "ok"
    drifted = [one["name"] for one in after["features"] if one["state"] == "drifted"]
    assert drifted == ["input[3]"]
    text = str(system.call("GET", system.where().metrics_url)[1])
    assert 'headrace_drift_score{endpoint="m",feature="input[3]",statistic="drifted"} 1' in text
    found = system.get("/api/v1/events?endpoint=m")["events"]
    assert [event["reason"] for event in found if event["kind"] == "drift"] == ["DriftFound"]

    system.kill_control()
    system.start()
    system.wait_ready()
    again = drift_when(system, 100)
    assert again["state"] == "drifted"
    assert main(["drift", "m", "--home", home]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[1].split()[:4] == ["input[3]", "(c3)", "input", "drifted"]
    assert told.err.startswith("input[3] drifted: ")
    assert main(["drift", "reference", "reset", "m", "--home", home]) == 0
    assert system.get(DRIFT)["state"] == "collecting"


def _wait_for_plan(system: System, random: np.random.Generator) -> None:
    """Until the replica counts by the reference: requests before that are not seen."""
    deadline = time.monotonic() + 30
    while True:
        send(system, random, 1)
        found = system.get(DRIFT)["features"]
        if any(one["rows"] for one in found if one["role"] == "input" and one["needed"]):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
