"""Callers name entities; confined replicas look their features up.

A store that is away costs what the endpoint says, and never more.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headrace.client import Client
from headrace.core import NotFoundError
from headrace.features import (
    FeatureView,
    OnlineStore,
    applied_definitions,
    apply_definitions,
    default_online_store,
    open_online_store,
    push_rows,
    served_directory,
)
from headrace.features.online_writers import materialize
from headrace.features.served import read_served
from headrace.runtimes import load_model
from headrace.testing import models
from tests.contract.redis_servers import NoServerError, RedisServer, running_server
from tests.e2e.control.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DEFINITIONS = {
    "entities": [{"name": "customer", "join_key": "customer_id", "datatype": "INT64"}],
    "feature_views": [
        {
            "name": "stats",
            "entities": ["customer"],
            "source": {"path": "customers.parquet"},
            "features": [
                {"name": "age", "datatype": "INT64", "default": -1},
                {"name": "spend", "datatype": "FP32", "default": 0.0},
            ],
        },
        {
            "name": "strict",
            "entities": ["customer"],
            "on_missing": "reject",
            "source": {"path": "customers.parquet"},
            "features": [{"name": "rank", "datatype": "FP32"}],
        },
    ],
    "feature_services": [
        {"name": "people", "features": ["stats"]},
        {"name": "known", "features": ["stats", "strict"]},
    ],
}
INPUTS = {"x": ["spend", "amount", "age", "hour"]}


@pytest.fixture
def home(system: System, tmp_path: Path) -> Path:
    """A home with definitions in force, for a system that is not started."""
    file = tmp_path / "features.yaml"
    file.write_text(json.dumps(DEFINITIONS))
    apply_definitions(file, system.home)
    return system.home


@pytest.fixture
def matmul(tmp_path: Path) -> Path:
    path = tmp_path / "matmul.onnx"
    path.write_bytes(models.matmul())
    return path


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    try:
        with running_server("valkey") as server:
            server.stop()
            server.start("--port", str(port_of(server)))
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


def port_of(server: RedisServer) -> int:
    """A port that stays this server's when it is started again."""
    file = server.directory / "port"
    if not file.exists():
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            file.write_text(str(held.getsockname()[1]))
    return int(file.read_text())


def url_of(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{port_of(server)}/0"


def view(home: Path, name: str = "stats") -> FeatureView:
    return applied_definitions(home).view(name)


def put(home: Path, store: OnlineStore, customer: int, age: int, spend: float) -> None:
    at = datetime.now(UTC)
    row = {"customer_id": customer, "event_timestamp": at, "age": age, "spend": spend}
    assert push_rows(view(home), store, [row])


def asked(customer: int) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "customer_id", "shape": [1], "datatype": "INT64", "data": [customer]},
            {"name": "amount", "shape": [1], "datatype": "FP32", "data": [5.0]},
            {"name": "hour", "shape": [1], "datatype": "FP32", "data": [1.0]},
        ]
    }


def said(answer: Any) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


def endpoint(model: Path, **features: object) -> dict[str, Any]:
    told = {"service": "people", "inputs": INPUTS, "show_status": True, **features}
    return {"name": "fraud", "model": str(model), "features": told}


def expected(model: Path, spend: float, age: float) -> list[float]:
    x = np.array([[spend, 5, age, 1]], np.float32)
    return [float(value) for value in load_model(model).run({"x": x})["y"][0]]


def test_answers_follow_the_newest_values_of_the_entities(
    system: System, home: Path, matmul: Path
) -> None:
    store = open_online_store(default_online_store(home))
    put(home, store, 17, 34, 20.25)
    system.start(endpoint(matmul))
    system.wait_ready()

    status, answer = system.infer("fraud", asked(17))
    assert status == 200, answer
    assert said(answer)["y"] == pytest.approx(expected(matmul, 20.25, 34))
    assert said(answer)["stats__status"] == ["PRESENT"]

    put(home, store, 17, 35, 3.0)  # another process writes; the replica may only read
    _, answer = system.infer("fraud", asked(17))
    assert said(answer)["y"] == pytest.approx(expected(matmul, 3.0, 35))

    _, answer = system.infer("fraud", asked(99))
    assert said(answer)["y"] == pytest.approx(expected(matmul, 0.0, -1))
    assert said(answer)["stats__status"] == ["MISSING"]
    store.close()

    with Client(system.where().http_url) as client:
        metadata = {spec.name: spec.datatype for spec in client.metadata("fraud").inputs}
        assert metadata == {"customer_id": "INT64", "amount": "FP32", "hour": "FP32"}
        many: dict[str, Any] = {
            "customer_id": np.array([17, 99, 17], np.int64),
            "amount": np.full(3, 5, np.float32),
            "hour": np.ones(3, np.float32),
        }
        found = client.infer("fraud", many).outputs
    want = [expected(matmul, 3.0, 35), expected(matmul, 0.0, -1), expected(matmul, 3.0, 35)]
    assert np.allclose(found["y"], want)
    assert "headrace_feature_rows_total" in metrics(system)


def metrics(system: System) -> str:
    return str(system.call("GET", system.where().metrics_url)[1])


@pytest.mark.long
def test_an_entity_that_is_rejected_costs_nobody_else(
    system: System, home: Path, matmul: Path
) -> None:
    store = open_online_store(default_online_store(home))
    put(home, store, 17, 34, 20.25)
    row = {"customer_id": 17, "event_timestamp": datetime.now(UTC), "rank": 1.0}
    push_rows(view(home, "strict"), store, [row])
    store.close()
    inputs = {"x": ["spend", "age", "rank", "amount"]}
    system.start(endpoint(matmul, service="known", inputs=inputs))
    system.wait_ready()

    with Client(system.where().http_url) as client:
        amount = np.ones(1, np.float32)
        futures: list[Any] = []
        with ThreadPoolExecutor(8) as pool:
            for i in range(64):
                customer = np.array([17 if i % 4 else 99], np.int64)
                keys: dict[str, Any] = {"customer_id": customer, "amount": amount}
                futures.append(pool.submit(client.infer, "fraud", keys))
        for i, future in enumerate(futures):
            if i % 4:
                assert future.result().outputs["stats__status"][0] == b"PRESENT"
            else:
                error = future.exception()
                assert isinstance(error, NotFoundError), error
                assert "customer:99 has no value in feature view 'strict'" in str(error)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["defaults", "reject"])
def test_a_store_that_stops_slows_down_or_forgets_follows_the_policy(
    system: System, home: Path, matmul: Path, redis: RedisServer, policy: str
) -> None:
    url = url_of(redis)
    store = open_online_store(url)
    put(home, store, 17, 34, 20.25)
    features = {"online_store": "main", "on_unavailable": policy, "timeout_s": 0.1}
    entry = {**endpoint(matmul, **features), "network": True}
    stores = [{"name": "main", "url": url}]
    system.start(spec={"version": 1, "online_stores": stores, "endpoints": [entry]})
    system.wait_ready()
    assert seen(system) == "PRESENT"

    away = "MISSING" if policy == "defaults" else "503"
    process = redis.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)  # it takes connections, and answers nobody
    try:
        assert {seen(system) for _ in range(20)} == {away}
    finally:
        os.kill(process.pid, signal.SIGCONT)
    eventually(system, "PRESENT")

    redis.stop()
    assert {seen(system) for _ in range(20)} == {away}

    redis.start("--port", str(port_of(redis)))  # it kept nothing
    eventually(system, "MISSING")
    put(home, store, 17, 34, 20.25)
    eventually(system, "PRESENT")
    store.close()


def seen(system: System, customer: int = 17) -> str:
    """How the features of one request were found; its HTTP status where it failed."""
    started = time.monotonic()
    status, answer = system.infer("fraud", asked(customer))
    assert time.monotonic() - started < 20, "a request hung"
    if status != 200:
        assert "features of 'people' cannot be read" in answer["error"]
        return str(status)
    return str(said(answer)["stats__status"][0])


def eventually(system: System, wanted: str) -> None:
    deadline = time.monotonic() + 30
    while (found := seen(system)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.usefixtures("home")
def test_what_does_not_fit_is_refused_before_anything_runs(system: System, matmul: Path) -> None:
    system.start({"name": "plain", "model": str(matmul)})
    system.wait_ready()
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"service": "nobody"}, "feature service 'nobody' is not defined; defined: people, known"),
        ({"inputs": {"x": ["age", "spend"]}}, "has the shape [-1, 4], but 2 columns"),
        ({"online_store": "away"}, "add `network: true`"),
        (
            {"online_store": "nobody"},
            "no online store 'nobody' in `online_stores`; there are: away",
        ),
        ({"online_store": "redis://127.0.0.1:1/0"}, "should be the name of an online store"),
    ]
    for features, said_of_it in mistakes:
        document = {
            "version": 1,
            "online_stores": [{"name": "away", "url": "redis://127.0.0.1:1/0"}],
            "endpoints": [endpoint(matmul, **features)],
        }
        status, answer = system.manage("POST", "/api/v1/apply", document)
        assert status == 400, answer
        assert said_of_it in json.dumps(answer), answer


@pytest.mark.long
def test_what_was_served_is_compared_with_what_training_will_see(
    system: System, matmul: Path, tmp_path: Path
) -> None:
    at = datetime.now(UTC) - timedelta(hours=1)
    source = {
        "customer_id": [17, 18],
        "event_timestamp": [at, at],
        "age": [34, 51],
        "spend": [20.25, 1.0],
        "rank": [1.0, 2.0],
    }
    pl.DataFrame(source).write_parquet(tmp_path / "customers.parquet")
    file = tmp_path / "features.yaml"
    file.write_text(json.dumps(DEFINITIONS))
    apply_definitions(file, system.home)
    store = open_online_store(default_online_store(system.home))
    materialize(view(system.home), store, until=datetime.now(UTC))
    system.start(endpoint(matmul, sample_ratio=1.0, skew_every_s=1.0))
    system.wait_ready()

    def skew() -> dict[str, Any]:
        headrace = str(Path(sys.executable).with_name("headrace"))
        command = [headrace, "features", "skew", "people", "--json"]
        done = subprocess.run(  # ours
            [*command, "--home", str(system.home)], capture_output=True, check=False, timeout=60
        )
        return json.loads(done.stdout) if done.stdout else {"rows": 0, "error": done.stderr}

    # The first requests come before the control plane has told the replica what to keep.
    for _ in range(20):
        assert {seen(system, customer) for customer in (17, 18)} == {"PRESENT"}

    def sampled() -> list[int]:
        lines = read_served(
            served_directory(system.home, "people"),
            applied_definitions(system.home).service("people"),
        ).rows
        ids = [row.keys["customer_id"] for row in lines]
        return [ids.count(customer) for customer in (17, 18)]

    until(lambda: skew()["rows"] >= 40)
    assert sampled() == [20, 20]
    assert {one["feature"]: one["differing"] for one in skew()["features"]} == {
        "age": 0,
        "spend": 0,
    }

    # Somebody writes the amounts in cents, at the time of the true ones.
    row = {"customer_id": 17, "event_timestamp": at, "age": 34, "spend": 2025.0}
    push_rows(view(system.home), store, [row])
    store.close()

    def differs() -> bool:
        assert seen(system, 17) == "PRESENT"
        return any(one["differing"] for one in skew()["features"])

    until(differs)
    (found,) = [one for one in skew()["features"] if one["differing"]]
    assert found["feature"] == "spend"
    assert set(found["causes"]) == {"OTHER_VALUE"}

    # The system finds it too, without anybody who asks.
    until(lambda: any(one["features"] for one in system.status()["feature_skew"]))
    assert 'headrace_feature_skew_ratio{service="people",feature="spend"}' in metrics(system)
    events = system.get("/api/v1/events?kind=features")["events"]
    assert "FeatureSkew" in [event["reason"] for event in events]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)
