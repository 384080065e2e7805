"""A stream worker as a process: a real model, a real log, real signals."""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from headrace.core import Array, ReplicaSettings
from headrace.core.spec.stream_parts import (
    StreamOutputSpec,
)
from headrace.streaming.broker import Broker, Delivery
from headrace.streaming.records import NewRecord
from headrace.streaming.settings import ScoringEndpoint, WorkerState
from headrace.testing import models
from tests.contract.brokers.rig import everything
from tests.e2e import replicas
from tests.e2e.streaming.workers import (
    DEAD,
    IN,
    OUT,
    keys,
    opened,
    running,
    settings,
    wait_until_done,
)
from tests.ports import free_port

pytestmark = pytest.mark.e2e

FEATURES = 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.mlp(features=FEATURES))
    return path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = opened(tmp_path, partitions=4)
    try:
        yield found
    finally:
        found.close()


def rows(count: int) -> Array:
    return np.random.default_rng(7).normal(size=(count, FEATURES)).astype(np.float32)


def as_json(data: Array) -> list[NewRecord]:
    return [
        NewRecord(
            topic=IN,
            key=b"%d" % at,
            value=msgspec.json.encode({"input": [float(one) for one in row], "n": at}),
        )
        for at, row in enumerate(data)
    ]


def test_two_members_share_and_the_one_that_leaves_loses_nothing(
    tmp_path: Path, model: Path, broker: Broker
) -> None:
    data = as_json(rows(4000))
    told = [
        settings(tmp_path, model, member=name, delivery=Delivery.EXACTLY_ONCE)
        for name in ("one", "two")
    ]
    with running(tmp_path, told[0]) as one, running(tmp_path, told[1]) as two:
        one.wait_until(lambda s: len(s.partitions) == 2)
        two.wait_until(lambda s: len(s.partitions) == 2)
        broker.send(data[:2000])
        two.wait_until(lambda s: s.answered > 100)
        assert two.stop() == 0
        broker.send(data[2000:])
        one.wait_until(lambda s: len(s.partitions) == 4)
        wait_until_done(broker)

    assert keys(broker, OUT) == Counter(range(4000))


@pytest.mark.long
@pytest.mark.usefixtures("broker")
def test_metrics_are_on_a_port_too_and_commands_are_not(tmp_path: Path, model: Path) -> None:
    port = free_port()
    with running(tmp_path, settings(tmp_path, model, metrics_port=port)) as worker:
        worker.wait_until(lambda s: s.state is WorkerState.RUNNING)
        url = f"http://127.0.0.1:{port}"
        text = httpx.get(f"{url}/metrics").text
        codes = [
            httpx.post(f"{url}/internal/pause").status_code,
            httpx.get(f"{url}/elsewhere").status_code,
            httpx.delete(f"{url}/metrics").status_code,
        ]
        with socket.create_connection(("127.0.0.1", port)) as rude:
            rude.sendall(b"\x00\xff\r\n\r\n")
            answer = rude.makefile("rb").read()
        state = worker.status().state
        worker.stop()

    assert 'headrace_stream_state{stream="s",state="running"} 1' in text
    assert codes == [404, 404, 501]
    assert b"Error response" in answer
    assert state is WorkerState.RUNNING


@pytest.mark.long
def test_an_endpoint_that_is_away_is_waited_for(
    tmp_path: Path, model: Path, broker: Broker
) -> None:
    with replicas.running(tmp_path, model) as replica:
        told = settings(
            tmp_path, None, endpoint=ScoringEndpoint(url=replica.url, name="m", timeout_s=5.0)
        )
        with running(tmp_path, told) as worker:
            broker.send(as_json(rows(10)))
            worker.wait_until(lambda s: s.answered == 10)
            replicas.stop(replica)
            broker.send(as_json(rows(10)))
            retrying = worker.wait_until(
                lambda s: s.state is WorkerState.RETRYING and s.retries > 0
            )
            again = replicas.start(tmp_path, model, port=replica.port)
            try:
                worker.wait_until(lambda s: s.answered == 20)
            finally:
                replicas.stop(again)
            worker.stop()

    assert retrying.problem != ""
    assert everything(broker, DEAD) == []


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"sink": IN}, 2, "answers would be scored again"),
        ({"output": StreamOutputSpec(outputs=["none"])}, 2, "the model has: prob"),
        ({"broker": "carrier:pigeon"}, 5, "names no broker"),
        ({"uds": "/nowhere/at/all.sock"}, 4, "cannot listen"),
        ({"model": ReplicaSettings(model_name="m", model_version="1", path="none.onnx")}, 3, ""),
    ],
)
def test_settings_that_cannot_work_end_the_process_with_a_reason(
    tmp_path: Path, model: Path, changes: dict[str, object], code: int, text: str
) -> None:
    told = msgspec.structs.replace(settings(tmp_path, model), **changes)
    with running(tmp_path, told) as worker:
        assert worker.process.wait(60) == code
        assert text in worker.log_text()
