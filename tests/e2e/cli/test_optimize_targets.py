"""What is chosen is the best by what was asked for: throughput, memory, or cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from headrace.runtimes import load_model
from tests import small_networks
from tests.e2e.cli.conftest import Shell

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Report = dict[str, Any]
PRICE = 0.17


@pytest.fixture
def fraud(shell: Shell) -> Path:
    """Trees, beside `test.csv` with labels."""
    xgboost = pytest.importorskip("xgboost", reason="the extra xgboost is not installed")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 8)).astype(np.float32)
    truth = (rows[:, 0] + rows[:, 1] > 0).astype(int)
    parameters = {"objective": "binary:logistic", "seed": 1}
    booster = xgboost.train(parameters, xgboost.DMatrix(rows, truth), 60)
    booster.save_model(shell.folder / "fraud.ubj")
    _table(shell.folder / "test.csv", np.column_stack([rows, truth]))
    return shell.folder / "fraud.ubj"


def _table(path: Path, rows: np.ndarray[Any, Any]) -> None:
    header = ",".join([f"c{i}" for i in range(rows.shape[1] - 1)] + ["label"])
    np.savetxt(path, rows, delimiter=",", header=header, comments="")


def optimized(shell: Shell, model: Path, target: str, *more: str) -> Report:
    done = shell.run(
        *("optimize", str(model), "--data", "test.csv", "--target", target, "--no-push", "--json"),
        *more,
    )
    assert done.returncode == 0, done.stderr
    report: Report = json.loads(done.stdout)
    assert report["settings"]["target"] == target
    assert report["chosen"]["name"] != report["baseline"]["name"], report["rejected"]
    return report


def accepted(report: Report) -> list[Report]:
    return [report["baseline"], report["chosen"], *report["candidates"]]


@pytest.mark.long
def test_for_throughput_most_requests_are_answered_on_all_cores(shell: Shell, fraud: Path) -> None:
    report = optimized(shell, fraud, "throughput", "--budget", "20s")

    chosen, baseline = report["chosen"], report["baseline"]
    assert chosen["throughput_per_s"] > baseline["throughput_per_s"]
    assert chosen["cut_ci_ratio"][0] > 0
    assert chosen["cut_ratio"] == max(one["cut_ratio"] for one in accepted(report))
    assert chosen["accuracy"] >= baseline["accuracy"] - 0.01
    assert "the highest throughput" in chosen["reason"]


@pytest.mark.long
def test_for_cost_the_cheapest_request_wins(shell: Shell, fraud: Path) -> None:
    more = ("--budget", "20s", "--cost-per-hour", str(PRICE))
    report = optimized(shell, fraud, "cost", *more)

    chosen, baseline = report["chosen"], report["baseline"]
    assert 0 < chosen["cost_per_million"] < baseline["cost_per_million"]
    assert chosen["cost_per_million"] == min(one["cost_per_million"] for one in accepted(report))
    for one in accepted(report):
        answered_in_an_hour = one["throughput_per_s"] * 3600
        assert one["cost_per_million"] == pytest.approx(PRICE / answered_in_an_hour * 1e6)
    assert any(f"{PRICE} per hour" in note for note in report["notes"])


@pytest.mark.long
def test_for_memory_the_smallest_of_those_that_were_weighed_wins(shell: Shell) -> None:
    path = shell.folder / "net.onnx"
    onnx.save(small_networks.perceptron(hidden=1500), str(path))
    rows = np.random.default_rng(0).normal(size=(1100, small_networks.WIDTH)).astype(np.float32)
    _table(shell.folder / "test.csv", np.column_stack([rows, _classes(path, rows)]))

    more = ("--budget", "20s", "--only", "onnxruntime-int8-dynamic*")
    report = optimized(shell, path, "memory", *more)

    chosen, baseline = report["chosen"], report["baseline"]
    weighed = [one for one in accepted(report) if one["memory_bytes"] is not None]
    assert len(weighed) >= 2
    assert chosen["memory_bytes"] == min(one["memory_bytes"] for one in weighed)
    assert chosen["memory_bytes"] < baseline["memory_bytes"]
    assert chosen["load_s"] > 0
    assert chosen["n"] == 1100


def _classes(path: Path, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    model = load_model(path)
    try:
        found: np.ndarray[Any, Any] = model.run({"x": rows})["y"].argmax(axis=1)
    finally:
        model.close()
    return found


@pytest.mark.long
@pytest.mark.parametrize("price", ["nan", "inf", "-1", "much"])
def test_what_is_no_price_is_refused(shell: Shell, price: str) -> None:
    done = shell.run("optimize", "model.onnx", "--target", "cost", "--cost-per-hour", price)

    assert done.returncode == 2
    assert "--cost-per-hour" in done.stderr
    assert "Traceback" not in done.stderr
