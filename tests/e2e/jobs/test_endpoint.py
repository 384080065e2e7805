"""A job answers a row as the endpoint does: the same model, features and class names."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headrace.features import (
    applied_definitions,
    apply_definitions,
    default_online_store,
    open_online_store,
    push_rows,
)
from headrace.testing import models
from tests.e2e.control.system import System
from tests.e2e.jobs.commands import Command, rows_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

CUSTOMERS = 300
DEFINITIONS = {
    "entities": [{"name": "customer", "join_key": "customer_id", "datatype": "INT64"}],
    "feature_views": [
        {
            "name": "stats",
            "entities": ["customer"],
            "source": {"path": "customers.parquet"},
            "features": [
                {"name": "age", "datatype": "INT64", "default": -1},
                {"name": "spend", "datatype": "FP32", "default": 0.5},
            ],
        }
    ],
    "feature_services": [{"name": "people", "features": ["stats"]}],
}


@pytest.fixture
def endpoints(system: System, tmp_path: Path) -> System:
    """An endpoint that looks features up, for two customers of three known, and a plain one."""
    file = tmp_path / "features.yaml"
    file.write_text(json.dumps(DEFINITIONS))
    apply_definitions(file, system.home)
    view = applied_definitions(system.home).view("stats")
    store = open_online_store(default_online_store(system.home))
    at = datetime.now(UTC)
    known = [i for i in range(CUSTOMERS) if i % 3]
    push_rows(
        view,
        store,
        [
            {"customer_id": i, "event_timestamp": at, "age": 20 + i % 60, "spend": i / 7}
            for i in known
        ],
    )
    store.close()
    for name, data in (("matmul", models.matmul()), ("mlp", models.mlp())):
        (tmp_path / f"{name}.onnx").write_bytes(data)
    system.start(
        {
            "name": "fraud",
            "model": str(tmp_path / "matmul.onnx"),
            "features": {
                "service": "people",
                "inputs": {"x": ["spend", "amount", "age", "hour"]},
                "show_status": True,
            },
        },
        {
            "name": "digits",
            "model": str(tmp_path / "mlp.onnx"),
            "labels": {"prob": ["no", "yes"]},
        },
    )
    system.wait_ready()
    return system


def answers(system: System, name: str, inputs: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    status, answer = system.infer(name, {"inputs": inputs})
    assert status == 200, answer
    outputs = {one["name"]: (one["data"], one["shape"]) for one in answer["outputs"]}
    return answer["model_version"], outputs


def test_a_job_by_the_endpoint_looks_up_the_same_features(
    endpoints: System, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    frame = pl.DataFrame(
        {
            "customer_id": rng.permutation(CUSTOMERS),
            "amount": rng.uniform(0, 900, CUSTOMERS).astype(np.float32),
            "hour": rng.integers(0, 24, CUSTOMERS).astype(np.float32),
        }
    )
    frame.write_parquet(tmp_path / "rows.parquet")
    job = Command(
        ["-m", "fraud", "-i", tmp_path / "rows.parquet", "-o", tmp_path / "out",
         "--keys", "id=customer_id"],
        endpoints.home,
    )  # fmt: skip

    summary = job.summary()

    found = rows_of(tmp_path / "out")
    assert (summary["rows"], summary["errors"]) == (CUSTOMERS, 0)
    statuses = found["stats__status"].value_counts()
    assert dict(statuses.iter_rows()) == {"PRESENT": 200, "MISSING": 100}
    for got, asked in zip(found.iter_rows(named=True), frame.iter_rows(named=True), strict=True):
        version, outputs = answers(
            endpoints,
            "fraud",
            [
                {"name": "customer_id", "shape": [1], "datatype": "INT64",
                 "data": [asked["customer_id"]]},
                {"name": "amount", "shape": [1], "datatype": "FP32", "data": [asked["amount"]]},
                {"name": "hour", "shape": [1], "datatype": "FP32", "data": [asked["hour"]]},
            ],
        )  # fmt: skip
        assert got["id"] == asked["customer_id"]
        assert got["model_version"] == version
        assert got["stats__status"] == outputs["stats__status"][0][0]
        # One row and many may be added up in another order: the last bits of a float are not said.
        np.testing.assert_allclose(got["y"], np.float32(outputs["y"][0]), rtol=2e-6, atol=1e-4)


def test_rows_of_the_same_batches_are_the_same_bits(endpoints: System, tmp_path: Path) -> None:
    rows = np.random.default_rng(3).standard_normal((200, 32)).astype(np.float32)
    frame = pl.DataFrame({"id": range(200), "input": rows.tolist()}, schema_overrides={
        "input": pl.List(pl.Float32)})  # fmt: skip
    frame.write_ndjson(tmp_path / "rows.jsonl")
    spec = tmp_path / "headrace.yaml"
    endpoint = {"name": "digits", "model": str(tmp_path / "mlp.onnx"),
                "labels": {"prob": ["no", "yes"]}}  # fmt: skip
    spec.write_text(json.dumps({"version": 1, "endpoints": [endpoint]}))
    job = Command(
        ["-m", "digits", "--file", spec, "-i", tmp_path / "rows.jsonl", "-o", tmp_path / "out",
         "--keys", "id", "--chunk-rows", "1"],
        endpoints.home,
    )  # fmt: skip

    job.summary()

    found = rows_of(tmp_path / "out")
    for place, got in enumerate(found.iter_rows(named=True)):
        tensor = {"name": "input", "shape": [1, 32], "datatype": "FP32",
                  "data": rows[place].tolist()}  # fmt: skip
        version, outputs = answers(endpoints, "digits", [tensor])
        assert (got["id"], got["model_version"]) == (place, version)
        assert np.float32(outputs["prob"][0]).tolist() == got["prob"]
        assert got["prob_label"] == ["no", "yes"][int(np.argmax(got["prob"]))]
