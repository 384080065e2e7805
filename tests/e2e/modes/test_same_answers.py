"""One model, one feature store, three modes: each row gets the same answer in all."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
import xgboost
from sklearn.datasets import load_digits

from headrace.client import Client
from headrace.features import (
    applied_definitions,
    apply_definitions,
    default_online_store,
    open_online_store,
    push_rows,
)
from headrace.streaming.broker import Broker
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord
from tests.contract.brokers.rig import everything
from tests.e2e.control.system import System
from tests.e2e.jobs.commands import Command, rows_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS, CUSTOMERS = 10_000, 500
HEADRACE = Path(sys.executable).with_name("headrace")
COLUMNS = ["spend", "amount", "age", "hour"]
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


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    """Pairs of pixels of scikit-learn's written digits, each of some customer, some unknown."""
    pixels = load_digits().data.astype(np.float32)
    pairs = [(20, 28), (36, 43), (10, 53), (26, 33), (18, 45), (42, 61)]
    amount = np.concatenate([pixels[:, a] for a, _ in pairs])[:ROWS]
    hour = np.concatenate([pixels[:, b] for _, b in pairs])[:ROWS]
    customers = np.random.default_rng(1).integers(0, CUSTOMERS + 50, ROWS)
    return pl.DataFrame({"customer_id": customers, "amount": amount, "hour": hour})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, rows: pl.DataFrame) -> Path:
    rng = np.random.default_rng(2)
    inputs = np.stack(
        [
            rng.uniform(0, 80, ROWS),
            rows["amount"].to_numpy(),
            rng.integers(-1, 90, ROWS),
            rows["hour"].to_numpy(),
        ],
        axis=1,
    ).astype(np.float32)
    labels = (inputs @ [0.3, 1.0, 0.1, -0.7] > 5).astype(int)
    booster = xgboost.XGBClassifier(n_estimators=40, max_depth=5).fit(inputs, labels)
    path = tmp_path_factory.mktemp("model") / "model.ubj"
    booster.save_model(path)
    return path


@pytest.fixture
def served(system: System, tmp_path: Path, model: Path) -> dict[str, Any]:
    file = tmp_path / "features.yaml"
    file.write_text(json.dumps(DEFINITIONS))
    apply_definitions(file, system.home)
    view = applied_definitions(system.home).view("stats")
    store = open_online_store(default_online_store(system.home))
    at = datetime.now(UTC)
    known = [
        {"customer_id": i, "event_timestamp": at, "age": 20 + i % 60, "spend": i / 7}
        for i in range(CUSTOMERS)
    ]
    push_rows(view, store, known)
    store.close()
    scored = {
        "model": str(model),
        "features": {"service": "people", "inputs": {"input": COLUMNS}},
    }
    system.start({"name": "fraud", **scored})
    system.wait_ready()
    return scored


@pytest.mark.parametrize("count", [1_000, pytest.param(ROWS, marks=pytest.mark.long)])
def test_the_endpoint_the_stream_and_the_job_answer_alike(
    served: dict[str, Any], system: System, rows: pl.DataFrame, tmp_path: Path, count: int
) -> None:
    rows = rows.sample(count, seed=3)
    online = by_endpoint(system, rows)
    streamed = by_stream(system, served, rows, tmp_path)
    batched = by_job(system, rows, tmp_path)

    assert len(np.unique(online)) > 100  # there is something to be alike
    np.testing.assert_array_equal(streamed, online)
    np.testing.assert_array_equal(batched, online)


def by_endpoint(system: System, rows: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Each row a request of its own, through the gateway."""
    with Client(system.where().http_url) as client:

        def ask(row: tuple[int, float, float]) -> np.ndarray[Any, Any]:
            customer, amount, hour = row
            answer = client.infer(
                "fraud",
                {
                    "customer_id": np.array([customer], np.int64),
                    "amount": np.array([amount], np.float32),
                    "hour": np.array([hour], np.float32),
                },
            )
            row_of: np.ndarray[Any, Any] = answer.outputs["probabilities"][0]
            return row_of

        with ThreadPoolExecutor(8) as pool:
            return np.stack(list(pool.map(ask, rows.iter_rows())))


def by_stream(
    system: System, served: dict[str, Any], rows: pl.DataFrame, folder: Path
) -> np.ndarray[Any, Any]:
    """Each row a record, by a stream of its own process."""
    url = f"log://{folder}/log"
    spec = folder / "streams.yaml"
    stream = {
        "name": "fraud-stream",
        **served,
        "source": {"broker": url, "topics": ["in"]},
        "sink": {"topic": "out", "fields": ["row"]},
        "delivery": "exactly_once",
    }
    spec.write_text(json.dumps({"version": 1, "streams": [stream]}))
    broker = open_broker(url, home=folder)
    broker.create_topic("in", partitions=2)
    broker.create_topic("out", partitions=2)
    broker.send(
        [
            NewRecord(topic="in", key=str(place).encode(), value=json.dumps(row).encode())
            for place, row in enumerate(rows.with_row_index("row").iter_rows(named=True))
        ]
    )
    with streaming(spec, system.home, folder / "stream.log"):
        answers = all_answers(broker, folder / "stream.log", rows.height)
    broker.close()
    assert len(answers) == rows.height
    return np.array([answers[place] for place in range(rows.height)], np.float32)


@contextmanager
def streaming(spec: Path, home: Path, log: Path) -> Iterator[None]:
    command = [str(HEADRACE), "stream", "up", "-f", str(spec)]
    environment = {**os.environ, "HEADRACE_HOME": str(home)}
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def all_answers(broker: Broker, log: Path, count: int) -> dict[int, list[float]]:
    """Once as many answers are there as rows; what the stream said if they do not come."""
    from tests.e2e.alerts.receivers import wait_for  # noqa: PLC0415  # beside its only use

    def written() -> int:
        return sum(end - first for first, end in broker.ends("out").values())

    wait_for(lambda: written() >= count or None, lambda: f"{written()}\n{log.read_text()}")
    found = [msgspec.json.decode(record.value or b"") for record in everything(broker, "out")]
    return {one["row"]: one["probabilities"] for one in found}


def by_job(system: System, rows: pl.DataFrame, folder: Path) -> np.ndarray[Any, Any]:
    """All rows of a Parquet file, by the endpoint that runs."""
    rows.with_row_index("row").write_parquet(folder / "rows.parquet")
    out = folder / "out"
    job = Command(
        ["-m", "fraud", "-i", folder / "rows.parquet", "-o", out, "--keys", "row"], system.home
    )
    summary = job.summary()
    assert (summary["rows"], summary["errors"]) == (rows.height, 0)
    found = rows_of(out).sort("row")
    return found["probabilities"].to_numpy()
