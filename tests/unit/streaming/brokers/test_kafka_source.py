"""Messages of a consumer as records: several partitions, and what is no record."""

from typing import ClassVar, cast

from confluent_kafka import Consumer, KafkaError, Message
from confluent_kafka import TopicPartition as KafkaPartition
from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.broker import Membership
from headrace.streaming.brokers.kafka.client import ClientHealth
from headrace.streaming.brokers.kafka.offsets import Assigning, PartitionOffsets
from headrace.streaming.brokers.kafka.session import KafkaSource
from headrace.streaming.records import TopicPartition
from headrace.testing.virtual_time import TurnedClock

HELD = [TopicPartition("a", 0), TopicPartition("a", 1), TopicPartition("b", 0)]
GONE = TopicPartition("b", 1)


class Client:
    """A consumer with these messages."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    def poll(self, timeout_s: float) -> Message | None:
        del timeout_s
        return self.messages.pop(0) if self.messages else None

    def consume(self, max_records: int, timeout_s: float) -> list[Message]:
        del timeout_s
        taken, self.messages = self.messages[:max_records], self.messages[max_records:]
        return taken


def source_of(client: object, positions: PartitionOffsets) -> KafkaSource:
    assigning = Assigning(
        membership=Membership(group="g", member="m", topics=("a", "b")),
        is_cooperative=True,
        timeout_s=15.0,
        address="h:1",
        clock=TurnedClock(),
    )
    health = ClientHealth("h:1")
    return KafkaSource(cast("Consumer", client), positions, assigning, health)


@given(
    st.lists(st.tuples(st.sampled_from([*HELD, GONE]), st.booleans()), max_size=12),
    st.integers(1, 12),
)
def test_records_of_held_partitions_come_in_order_whatever_stands_between_them(
    steps: list[tuple[TopicPartition, bool]], max_records: int
) -> None:
    messages = []
    for offset, (partition, is_end) in enumerate(steps):
        error = KafkaError(KafkaError._PARTITION_EOF) if is_end else None
        messages.append(
            Message(
                topic=partition.topic,
                partition=partition.partition,
                offset=offset,
                value=b"v",
                timestamp=(1, 7000),
                error=error,
            )
        )
    positions = PartitionOffsets()
    positions.hold(dict.fromkeys(HELD, 0))
    client = Client(messages)
    source = source_of(client, positions)
    records = []
    while client.messages:
        records += source.take(max_records, 0)

    assert [(record.topic_partition, record.offset) for record in records] == [
        (partition, offset)
        for offset, (partition, is_end) in enumerate(steps)
        if partition in HELD and not is_end
    ]


class Shortened(Client):
    """A consumer of a partition whose first records retention has deleted."""

    moved: ClassVar[list[tuple[str, int]]] = []

    def get_watermark_offsets(self, partition: KafkaPartition, timeout: float) -> tuple[int, int]:
        del partition, timeout
        return 310, 510

    def incremental_unassign(self, partitions: list[KafkaPartition]) -> None:
        self.moved.append(("from", partitions[0].partition))

    def incremental_assign(self, partitions: list[KafkaPartition]) -> None:
        self.moved.append(("to", partitions[0].offset))


def test_records_that_retention_deleted_are_counted_and_the_first_one_left_is_next() -> None:
    error = KafkaError(KafkaError._AUTO_OFFSET_RESET)
    client = Shortened([Message(topic="a", partition=0, offset=10, error=error)])
    positions = PartitionOffsets()
    positions.hold({HELD[0]: 10})
    source = source_of(client, positions)

    assert source.take(10, 0) == []
    assert source.expired == 300
    assert client.moved == [("from", 0), ("to", 310)]
    assert positions.lag(HELD[0], 510, 0.0).records == 200
