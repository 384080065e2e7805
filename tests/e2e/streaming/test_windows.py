"""Windows in a worker's process: killed at random moments, it answers as one that never was."""

import random
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.core import SystemClock
from headrace.core.spec.stream_parts import (
    Function,
    StreamFormatSpec,
    StreamOutputSpec,
    StreamWindowSpec,
    StreamWindowsSpec,
)
from headrace.streaming.broker import Broker, Delivery
from headrace.streaming.records import NewRecord
from headrace.streaming.settings import WorkerSettings
from headrace.testing import models
from tests.contract.brokers.rig import everything
from tests.e2e.streaming.workers import (
    DEAD,
    IN,
    OUT,
    killed_at_random,
    opened,
    running,
    settings,
)

pytestmark = pytest.mark.e2e

NAMES = ["n_10s", "spend_1m", "most_7s"]
WINDOWS = StreamWindowsSpec(
    windows=[
        StreamWindowSpec(name="n_10s", size_s=10, key="card"),
        StreamWindowSpec(
            name="spend_1m",
            size_s=60,
            slide_s=5,
            function=Function.SUM,
            field="amount",
            key="card",
        ),
        StreamWindowSpec(
            name="most_7s", size_s=7.5, slide_s=2, function=Function.MAX, field="amount"
        ),
    ],
    checkpoint_s=0.05,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.matmul())
    return path


def payments(count: int) -> list[NewRecord]:
    """Of the last hour, ten a second."""
    chance = random.Random(3)  # noqa: S311  # no secret
    begin_s = SystemClock().now() - 3600
    return [
        NewRecord(
            topic=IN,
            key=b"shop%d" % chance.randrange(20),
            value=msgspec.json.encode(
                {
                    "id": at,
                    "card": chance.randrange(50),
                    "amount": round(chance.uniform(1, 500), 2),
                }
            ),
            timestamp_s=begin_s + at / 10,
        )
        for at in range(count)
    ]


def told(folder: Path, model: Path, delivery: Delivery) -> WorkerSettings:
    return settings(
        folder,
        model,
        delivery=delivery,
        windows=WINDOWS,
        format=StreamFormatSpec(columns={"x": ["amount", *NAMES]}),
        output=StreamOutputSpec(fields=["id", "amount", *NAMES]),
        max_batch_size=16,
    )


def answers(broker: Broker) -> dict[int, list[bytes]]:
    """By the id of the input: one, or more where it was answered again."""
    found: dict[int, list[bytes]] = {}
    for one in everything(broker, OUT):
        value = one.value or b""
        found.setdefault(msgspec.json.decode(value)["id"], []).append(value)
    return found


def undisturbed(folder: Path, model: Path, records: list[NewRecord]) -> dict[int, list[bytes]]:
    folder.mkdir()
    broker = opened(folder, partitions=2)
    broker.send(records)
    calm = told(folder, model, Delivery.AT_LEAST_ONCE)
    assert list(killed_at_random(folder, calm, broker, kills=0, seed=0)) == []
    found = answers(broker)
    broker.close()
    return found


@pytest.mark.long
@pytest.mark.parametrize("delivery", Delivery)
def test_a_worker_that_is_killed_counts_every_record_once(
    tmp_path: Path, model: Path, delivery: Delivery
) -> None:
    count, kills = 12_000, 6
    records = payments(count)
    expected = undisturbed(tmp_path / "calm", model, records)
    broker = opened(tmp_path, partitions=2)
    broker.send(records)
    told_so = told(tmp_path, model, delivery)
    interrupted = 0
    for number, left in enumerate(killed_at_random(tmp_path, told_so, broker, kills=kills, seed=5)):
        interrupted += 0 < left < count
        if number % 3 == 2:
            shutil.rmtree(tmp_path / "stream-state")  # it moves to a machine without its state
    text = (tmp_path / "one.log").read_text()
    found = answers(broker)
    dead = everything(broker, DEAD)
    broker.close()

    assert interrupted >= kills // 2
    assert "are read again" in text
    assert "are rebuilt from" in text
    assert dead == []
    assert {at: set(values) for at, values in found.items()} == {
        at: set(values) for at, values in expected.items()
    }
    if delivery is Delivery.EXACTLY_ONCE:
        assert max(map(len, found.values())) == 1


def test_a_model_sees_what_windows_come_to(tmp_path: Path, model: Path) -> None:
    broker = opened(tmp_path)
    begin_s = SystemClock().now() // 60 * 60 - 600  # where all windows begin
    rows = [(0.0, "a", 10.0), (1.0, "b", 7.0), (4.0, "a", 5.0), (12.0, "a", 1.0), (61.0, "a", 2.0)]
    late = (0.5, "a", 1.0)
    for at, (second, card, amount) in enumerate([*rows, late]):
        value = msgspec.json.encode({"id": at, "card": card, "amount": amount})
        broker.send([NewRecord(topic=IN, key=b"k", value=value, timestamp_s=begin_s + second)])
    broker.send([NewRecord(topic=IN, key=b"k", value=b'{"id": 9, "amount": 1}')])
    with running(tmp_path, told(tmp_path, model, Delivery.AT_LEAST_ONCE)) as worker:
        worker.wait_until(lambda s: s.answered == 6 and s.dead_letters == 1)
        text = worker.metrics()
        worker.stop()
    found = {at: msgspec.json.decode(one) for at, (one,) in answers(broker).items()}
    letters = [dict(one.headers)["headrace-error"].decode() for one in everything(broker, DEAD)]
    broker.close()

    windows = [[found[at][name] for name in NAMES] for at in range(6)]
    in_time = [[1, 10.0], [1, 7.0], [2, 15.0], [1, 16.0], [1, 3.0]]
    assert [row[:2] for row in windows] == [*in_time, [2, 15.0]]  # the late one is not counted
    weights = np.random.default_rng(1).standard_normal((4, 3), dtype=np.float32)
    x = np.array([[one[2], *windows[at]] for at, one in enumerate([*rows, late])], np.float32)
    np.testing.assert_allclose([found[at]["y"] for at in range(6)], x @ weights, rtol=1e-5)
    assert ["'card'" in letter for letter in letters] == [True]
    assert 'headrace_stream_window_late_records_total{stream="s"} 1' in text
