"""Plain clients of Kafka and Pulsar that fill a ledger; other brokers have only Headrace's."""

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from headrace.streaming.broker import Broker
from headrace.streaming.records import NewRecord
from tests.brokers.kafka import KafkaCluster
from tests.brokers.pulsar import Pulsar
from tests.chaos.ledger import FLUSH_WITHIN_S, Ledger, key_of, value_of

IN, OUT, DEAD = "in", "out", "dead"
_ASK_S: Final = 30.0


@contextmanager
def _in_threads(ledger: Ledger, *targets: Callable[[], None]) -> Iterator[None]:
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ledger.stopped.set()
        ledger.over.set()
        for thread in threads:
            thread.join(2 * FLUSH_WITHIN_S)
            assert not thread.is_alive()


@contextmanager
def over_kafka(
    cluster: KafkaCluster, ledger: Ledger, *, partitions: int, rate: float
) -> Iterator[None]:
    """Make the topics, and write and read while the block runs."""
    topics = [NewTopic(name, partitions) for name in (IN, OUT, DEAD)]
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    for made in admin.create_topics(topics).values():
        made.result(_ASK_S)

    def write() -> None:
        producer = Producer(
            {
                "bootstrap.servers": cluster.bootstrap,
                "log_level": 0,
                "enable.idempotence": True,
                "message.timeout.ms": 300_000,
                "linger.ms": 5,
            }
        )

        def send(number: int) -> None:
            def on_delivery(error: object, message: Message) -> None:
                assert error is None, error
                ledger.acknowledge(number, message.partition() or 0)

            producer.produce(IN, value_of(number), key_of(number), on_delivery=on_delivery)

        ledger.feed(rate, send, producer.poll)
        assert producer.flush(FLUSH_WITHIN_S) == 0
        ledger.flushed.set()

    def read() -> None:
        consumer = _consumer(cluster)
        consumer.assign([TopicPartition(OUT, number, 0) for number in range(partitions)])
        while not ledger.over.is_set():
            for message in consumer.consume(1000, 0.2):
                if message.error() is None:
                    ledger.answer(message.value() or b"")
        consumer.close()

    with _in_threads(ledger, write, read):
        yield


def _consumer(cluster: KafkaCluster) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "log_level": 0,
            "group.id": "counting",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )


def kafka_dead_letters(cluster: KafkaCluster, partitions: int) -> int:
    """Return how many offsets the topic of dead letters has."""
    consumer = _consumer(cluster)
    try:
        ends = (
            consumer.get_watermark_offsets(TopicPartition(DEAD, number), _ASK_S)
            for number in range(partitions)
        )
        return sum(last - first for first, last in ends)
    finally:
        consumer.close()


def counted_by_apache(cluster: KafkaCluster) -> tuple[int, int]:
    """Return how many answers Apache's console consumer reads, and how many are different."""
    lines = cluster.tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--topic", OUT, "--from-beginning", "--isolation-level", "read_committed"),
        *("--timeout-ms", "15000"),
    ).splitlines()
    return len(lines), len(set(lines))


def coordinator_of(cluster: KafkaCluster, group: str) -> int | None:
    """Return the place of the broker that coordinates a group; None if nobody says it."""
    try:
        return cluster.coordinator(group)
    except (KafkaException, TimeoutError):
        return None


@contextmanager
def over_any(opened: Callable[[], Broker], ledger: Ledger, *, rate: float) -> Iterator[None]:
    """Write and read with Headrace's own clients, to topics that exist, while the block runs."""
    writer, reader = opened(), opened()
    reader.create_topic(OUT, like=IN if writer.abilities.partitions else "")

    def write() -> None:
        unsent: list[int] = []

        def flush(pause_s: float) -> None:
            writer.send(
                [
                    NewRecord(topic=IN, key=key_of(number).encode(), value=value_of(number))
                    for number in unsent
                ]
            )
            for number in unsent:
                ledger.acknowledge(number, 0)
            unsent.clear()
            time.sleep(pause_s)

        ledger.feed(rate, unsent.append, flush)
        flush(0.0)
        ledger.flushed.set()

    def read() -> None:
        offsets = {partition: first for partition, (first, _) in reader.ends(OUT).items()}
        while not ledger.over.wait(0.05):
            for record in reader.read(OUT, after=offsets, max_records=10_000):
                ledger.answer(record.value or b"")
                offsets[record.topic_partition] = record.offset + 1

    with closing(writer), closing(reader), _in_threads(ledger, write, read):
        yield


@contextmanager
def over_pulsar(server: Pulsar, ledger: Ledger, *, partitions: int, rate: float) -> Iterator[None]:
    """Make the topics, of which that of the source is partitioned if it has several; as above."""
    import pulsar  # noqa: PLC0415  # once loaded, it spoils exceptions of other modules

    if partitions > 1:
        request = urllib.request.Request(  # noqa: S310  # ours
            f"{server.admin}/admin/v2/persistent/public/default/{IN}/partitions",
            str(partitions).encode(), {"Content-Type": "application/json"}, method="PUT",
        )  # fmt: skip
        urllib.request.urlopen(request, timeout=_ASK_S).close()  # noqa: S310  # ours
    quiet = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
    client = pulsar.Client(server.url, logger=quiet)

    def write() -> None:
        producer = client.create_producer(IN, send_timeout_millis=0, block_if_queue_full=True)

        def send(number: int) -> None:
            def on_sent(result: object, message_id: "pulsar.MessageId") -> None:
                assert result == pulsar.Result.Ok, result
                ledger.acknowledge(number, max(message_id.partition(), 0))

            producer.send_async(value_of(number), on_sent, partition_key=key_of(number))

        ledger.feed(rate, send, time.sleep)
        producer.flush()
        ledger.flushed.set()

    def read() -> None:
        reader = client.create_reader(OUT, pulsar.MessageId.earliest)
        while not ledger.over.is_set():
            try:
                ledger.answer(reader.read_next(200).data())
            except pulsar.Timeout:
                continue

    with _in_threads(ledger, write, read):
        yield
    client.close()  # never beside a thread that uses it, which would end the process


def pulsar_dead_letters(server: Pulsar) -> int:
    """Return how many messages the topic of dead letters has."""
    import pulsar  # noqa: PLC0415  # as above

    client = pulsar.Client(server.url)
    try:
        reader = client.create_reader(DEAD, pulsar.MessageId.earliest)
        count = 0
        while reader.has_message_available():
            reader.read_next(5000)
            count += 1
        return count
    finally:
        client.close()
