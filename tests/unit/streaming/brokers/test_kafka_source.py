"""Messages of a consumer as records: several partitions, and what is no record."""

from typing import cast

from confluent_kafka import Consumer, KafkaError, Message
from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.brokers.kafka.client import ClientHealth
from headrace.streaming.brokers.kafka.offsets import PartitionOffsets
from headrace.streaming.brokers.kafka.session import KafkaSource
from headrace.streaming.records import TopicPartition

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
    source = KafkaSource(cast("Consumer", client), positions, ClientHealth("h:1"), address="h:1")
    records = []
    while client.messages:
        records += source.take(max_records, 0)

    assert [(record.topic_partition, record.offset) for record in records] == [
        (partition, offset)
        for offset, (partition, is_end) in enumerate(steps)
        if partition in HELD and not is_end
    ]
