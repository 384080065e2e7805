"""A stream's worker that is killed fifty times over 200,000 records, over each broker.

`CHAOS_KILLS` and `CHAOS_RECORDS` change the numbers. Kafka and Pulsar: `test_cluster_kills.py`.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from headrace.core import ReplicaSettings, SystemClock
from headrace.core.spec.stream_parts import FormatKind, StreamFormatSpec
from headrace.streaming.broker import Broker, Delivery, StartPosition
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord
from headrace.streaming.settings import StreamStatus, WorkerSettings
from headrace.testing import models
from tests.contract.brokers.nats_servers import running_nats
from tests.contract.brokers.rig import everything
from tests.contract.redis_servers import running_server
from tests.e2e.streaming import workers
from tests.ports import free_port

KILLS: Final = int(os.environ.get("CHAOS_KILLS", "50"))
RECORDS: Final = int(os.environ.get("CHAOS_RECORDS", "200000"))
MAX_CONCURRENT: Final = 5000
SETTLED_S: Final = 5.0
"""So long after a start lag is surely known."""

pytestmark = pytest.mark.e2e


@pytest.fixture(params=["log", "nats", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "log":
            yield f"log://{tmp_path}/log"
        elif request.param == "nats":
            yield stack.enter_context(running_nats()).url
        else:
            server = stack.enter_context(running_server("valkey"))
            server.stop()
            port = free_port()
            server.start("--port", str(port), "--appendonly", "yes")
            yield f"redis://127.0.0.1:{port}/0"


@pytest.mark.parametrize("delivery", Delivery)
def test_killed_at_random_moments_nothing_is_lost_and_exactly_once_nothing_twice(
    tmp_path: Path, url: str, delivery: Delivery
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(models.matmul())
    told = settings(tmp_path, url, delivery, model)
    broker = open_broker(url, home=tmp_path)
    broker.create_topic(told.topics[0], partitions=2 if broker.abilities.partitions else 1)
    fill(broker, told.topics[0], range(RECORDS))
    chance = random.Random(RECORDS + KILLS)  # noqa: S311  # moments, no secrets

    sent, done = RECORDS, 0
    for kill in range(KILLS):
        left = sent - done
        if left < RECORDS // 10:  # it was too fast to be killed in between: there is more
            fill(broker, told.topics[0], range(sent, sent + RECORDS // 5))
            sent, left = sent + RECORDS // 5, left + RECORDS // 5
        # A share of what is left, so that the last kill still finds some.
        goal = int(left * chance.uniform(0.2, 1.8) / (KILLS - kill + 1))
        with workers.running(tmp_path, told) as worker:
            since = SystemClock().now()
            worker.wait_until(lambda status, goal=goal, since=since: is_past(status, goal, since))  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.005))
            status = worker.status()
            # It may do more before it dies: a later one finds that there is less.
            done = sent if is_past(status, sent, since) else done + status.answered
            worker.kill()
    with workers.running(tmp_path, told) as worker:
        since = SystemClock().now()
        worker.wait_until(lambda status: is_past(status, sent + 1, since))
        assert worker.stop() == 0

    seen = Counter(int(one.key or b"") for one in everything(broker, told.sink))
    broker.close()
    twice = sum(times - 1 for times in seen.values())
    name = url.partition(":")[0]
    told_of = f"{KILLS} kills over {sent:,} records, {twice:,} answered again"
    print(f"\n{name}, {delivery}: {told_of}")  # noqa: T201  # the figure
    assert set(seen) == set(range(sent))
    if delivery is Delivery.EXACTLY_ONCE:
        assert twice == 0


def settings(folder: Path, url: str, delivery: Delivery, model: Path) -> WorkerSettings:
    name = f"chaos-{uuid4().hex[:8]}"
    return WorkerSettings(
        name="chaos",
        broker=url,
        topics=[name],
        group=name,
        member="one",
        sink=f"{name}-out",
        dead_letters=f"{name}-dead",
        model=ReplicaSettings(model_name="m", model_version="1", path=str(model)),
        format=StreamFormatSpec(kind=FormatKind.RAW),
        delivery=delivery,
        start=StartPosition.EARLIEST,
        session_timeout_s=2.0 if url.startswith("log") else 6.0,
        max_batch_size=64,
        home=str(folder),
        uds=str(folder / "one.sock"),
    )


def fill(broker: Broker, topic: str, numbers: range) -> None:
    for begin in range(0, len(numbers), MAX_CONCURRENT):
        some = numbers[begin : begin + MAX_CONCURRENT]
        broker.send([NewRecord(topic=topic, key=b"%d" % n, value=bytes(16)) for n in some])


def is_past(status: StreamStatus, goal: int, since: float) -> bool:
    """Whether a worker that was started `since` answered so many, or there are none left."""
    is_idle = not status.waiting and not status.in_flight and bool(status.partitions)
    is_through = is_idle and all(partition.lag_records == 0 for partition in status.partitions)
    return status.answered >= goal or (is_through and status.lag_measured_at > since + SETTLED_S)
