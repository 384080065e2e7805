"""What happens to topics of Apache Kafka while a stream reads and writes them."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]  # not all are listed

from headrace.core import NotFoundError, SystemClock
from headrace.streaming.broker import Broker, Delivery, StartPosition
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import Record
from headrace.streaming.settings import StreamStatus, WorkerSettings, WorkerState
from tests.brokers.kafka import KafkaCluster
from tests.contract.brokers.rig import everything
from tests.e2e.streaming import workers

pytestmark = [pytest.mark.e2e, pytest.mark.jvm]
MAX_BYTES = 1_048_576
"""Largest value that Kafka's own producer sends by default."""
_NUMBERS = count()


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Topics of one test, and the settings of its worker."""

    cluster: KafkaCluster
    broker: Broker
    folder: Path
    name: str

    def settings(self, **changes: Any) -> WorkerSettings:
        return workers.settings(
            self.folder,
            workers.double(self.folder),
            broker=f"kafka://{self.cluster.bootstrap}",
            topics=[self.name],
            sink=f"{self.name}-out",
            dead_letters=f"{self.name}-dead",
            group=self.name,
            session_timeout_s=6.0,
            **changes,
        )

    def send(self, *values: bytes, partition: int = 0) -> None:
        """Write values with a client that knows nothing of Headrace."""
        producer = Producer(
            {"bootstrap.servers": self.cluster.bootstrap, "message.max.bytes": 2 * MAX_BYTES}
        )
        for value in values:
            producer.produce(self.name, value, partition=partition)
        assert producer.flush(60.0) == 0

    def read(self, topic: str) -> list[Record]:
        """Return what a topic has; nothing while it does not exist."""
        try:
            return everything(self.broker, f"{self.name}-{topic}")
        except NotFoundError:
            return []

    def wait_answers(self, expected: int) -> list[Record]:
        until = time.monotonic() + workers.WITHIN_S
        while len(found := self.read("out")) < expected:
            assert time.monotonic() < until, f"{len(found)} of {expected} answers"
            time.sleep(0.2)
        return found


@pytest.fixture
def stream(kafka: KafkaCluster) -> Iterator[Stream]:
    broker = open_broker(f"kafka://{kafka.bootstrap}?fetch.wait.max.ms=20", home=Path("/"))
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        name = f"topic-{next(_NUMBERS)}"
        yield Stream(cluster=kafka, broker=broker, folder=Path(folder), name=name)
    broker.close()


def values(number: int) -> list[bytes]:
    return [msgspec.json.encode({"x": [float(one), 1.0]}) for one in range(number)]


@pytest.mark.parametrize("delivery", Delivery)
def test_a_record_that_is_too_large_for_a_dead_letter_blocks_no_partition(
    stream: Stream, delivery: Delivery
) -> None:
    stream.broker.create_topic(stream.name)
    stream.broker.create_topic(f"{stream.name}-dead")  # the stream would make one with more room
    broken = b"{" * (MAX_BYTES - 500)
    stream.send(*values(2), broken, *values(2))
    with workers.running(stream.folder, stream.settings(delivery=delivery)) as worker:
        answers = stream.wait_answers(4)
        worker.wait_until(lambda status: status.dead_letters == 1)
        assert worker.stop() == 0

    assert len(answers) == 4
    (letter,) = stream.read("dead")
    headers = dict(letter.headers)
    assert headers["headrace-value-bytes"] == b"%d" % len(broken)
    assert letter.value == broken[: 64 << 10]


def test_a_partition_that_is_added_is_read_from_its_beginning(stream: Stream) -> None:
    stream.broker.create_topic(stream.name, partitions=2)
    stream.send(*values(5))
    with workers.running(stream.folder, stream.settings(start=StartPosition.LATEST)) as worker:
        worker.wait_until(
            lambda status: (
                status.state is WorkerState.RUNNING
                and [one.lag_records for one in status.partitions] == [0, 0]
            )
        )
        stream.send(*values(3))
        stream.wait_answers(3)
        admin = stream.cluster.admin()  # a client that is collected drops its requests
        admin.create_partitions([NewPartitions(stream.name, 4)])[stream.name].result(60.0)
        for partition in range(4):
            stream.send(*values(10), partition=partition)

        assert len(stream.wait_answers(43)) == 43
        worker.wait_until(lambda status: status.answered == 43 and len(status.partitions) == 4)


@pytest.mark.parametrize("delivery", Delivery)
def test_a_sink_that_is_deleted_is_made_again(stream: Stream, delivery: Delivery) -> None:
    stream.broker.create_topic(stream.name)
    with workers.running(stream.folder, stream.settings(delivery=delivery)) as worker:
        stream.send(*values(3))
        stream.wait_answers(3)
        admin, sink = stream.cluster.admin(), f"{stream.name}-out"
        admin.delete_topics([sink])[sink].result(60.0)
        stream.send(*values(20))

        assert len(stream.wait_answers(20)) == 20
        worker.wait_until(lambda status: status.state is WorkerState.RUNNING)


def test_records_that_retention_took_are_counted(stream: Stream) -> None:
    stream.broker.create_topic(stream.name)
    stream.send(*values(10))
    with workers.running(stream.folder, stream.settings()) as worker:
        stream.wait_answers(10)
        assert worker.stop() == 0
    stream.send(*values(500))
    admin = stream.cluster.admin()
    (deleted,) = admin.delete_records([KafkaPartition(stream.name, 0, 310)]).values()
    deleted.result(60.0)
    with workers.running(stream.folder, stream.settings()) as worker:
        assert len(stream.wait_answers(210)) == 210
        worker.wait_until(lambda status: status.expired == 300)
        assert "headrace_stream_records_expired_total" in worker.metrics()
        assert "retention deleted 300 unread records" in worker.log_text()


def lags_of_kafka(stream: Stream) -> dict[int, int]:
    """The lag of each partition as Apache's own tool for groups prints it."""
    text = stream.cluster.tool(
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        *("--describe", "--group", stream.name),
    )
    rows = [line.split() for line in text.splitlines() if line.strip()]
    names = next(row for row in rows if "PARTITION" in row)
    found = [dict(zip(names, row, strict=False)) for row in rows if stream.name in row]
    return {int(row["PARTITION"]): int(row["LAG"]) for row in found}


def is_measured_after(moment_s: float) -> Callable[[StreamStatus], bool]:
    return lambda status: status.lag_measured_at > moment_s


@pytest.mark.long
@pytest.mark.parametrize("delivery", Delivery)
def test_the_lag_is_the_one_that_kafkas_tool_prints(stream: Stream, delivery: Delivery) -> None:
    """The lag falls while the tool runs, so its figures lie between those before and after."""
    stream.broker.create_topic(stream.name, partitions=3)
    told = stream.settings(delivery=delivery)
    workers.double(stream.folder, delay_s=3.0)

    def lags(status: StreamStatus) -> dict[int, int | None]:
        return {one.partition: one.lag_records for one in status.partitions}

    with workers.running(stream.folder, told) as worker:
        worker.wait_until(lambda status: len(status.partitions) == 3)
        for partition, number in enumerate((900, 300, 600)):
            marked = msgspec.json.encode({"x": [1.0, workers.MARK]})
            stream.send(*[marked] * number, partition=partition)
        worker.wait_until(lambda status: status.answered > 0)
        seen: list[int] = []
        while len(seen) < 3 or seen[0] == seen[-1]:
            assert len(seen) < 20, seen
            before = lags(worker.status())
            kafka = lags_of_kafka(stream)
            after = lags(worker.wait_until(is_measured_after(SystemClock().now())))
            assert kafka.keys() == {0, 1, 2}
            for partition, lag in kafka.items():
                low, high = after[partition], before[partition]
                assert low is not None
                assert high is not None
                assert low <= lag <= high, (partition, low, lag, high)
            seen.append(sum(kafka.values()))
        assert seen[0] > seen[-1] > 0
        worker.wait_until(lambda status: status.answered == 1800)
        worker.wait_until(lambda status: set(lags(status).values()) == {0})
        assert set(lags_of_kafka(stream).values()) == {0}
