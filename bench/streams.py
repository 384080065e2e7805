"""One worker of the suite `streams`, in a process of its own: copies a topic of Kafka to another.

python -m bench.streams ARM ADDRESS TOPIC SINK COUNT

It ends after COUNT records and prints how long they took, in seconds of the clock and of the
processor; with a COUNT of 0 it copies until it is stopped, and says when it has its place.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, Message, Producer

from headrace.streaming.broker import Delivery, Membership, StartPosition
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord, TopicPartition

PLAIN: Final = "plain loop"
CAREFUL: Final = "plain loop, at least once"
MAX_CONCURRENT: Final = 256
_WAIT_S: Final = 0.25
_JOIN_S: Final = 5.0

Read = Callable[[], int]


class _Silent:
    """Keeps no state of its own."""

    def on_assigned(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int] | None:
        print("joined", len(partitions), flush=True)
        return None

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def main() -> None:
    """As the command line says."""
    arm, address, topic, sink, count = sys.argv[1:]
    if arm in {PLAIN, CAREFUL}:
        read, end = _plain(address, topic, sink, is_careful=arm == CAREFUL)
    else:
        read, end = _ours(address, topic, sink, Delivery(arm))
    done = 0
    began = cpu_began = 0.0
    while count == "0" or done < int(count):
        before, cpu_before = time.perf_counter(), time.process_time()
        some = read()
        if some and not done:
            began, cpu_began = before, cpu_before
        done += some
    end()
    print(time.perf_counter() - began, time.process_time() - cpu_began, flush=True)


def _ours(
    address: str, topic: str, sink: str, delivery: Delivery
) -> tuple[Read, Callable[[], None]]:
    url = f"kafka://{address}?partition.assignment.strategy=range"
    membership = Membership(
        group=uuid4().hex,
        member="one",
        topics=(topic,),
        delivery=delivery,
        start=StartPosition.EARLIEST,
    )
    session = open_broker(url, home=Path()).join(membership, _Silent())

    def read() -> int:
        found = session.poll(MAX_CONCURRENT, _WAIT_S)
        if found:
            answers = [NewRecord(topic=sink, key=one.key, value=one.value) for one in found]
            session.produce(answers, {found[-1].topic_partition: found[-1].offset + 1})
        return len(found)

    def end() -> None:
        assert session.flush(60)

    return read, end


def _plain(  # noqa: C901  # as one writes it by hand, in one piece
    address: str, topic: str, sink: str, *, is_careful: bool
) -> tuple[Read, Callable[[], None]]:
    """What one writes by hand; careful is who stores offsets after the reports of delivery."""
    shared = {"bootstrap.servers": address}
    consumer = Consumer(
        {
            **shared,
            "group.id": uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
            "fetch.queue.backoff.ms": 10,  # else it runs dry for a second after 100,000 records
        }
    )
    producer = Producer({**shared, "enable.idempotence": True, "linger.ms": 1})
    consumer.subscribe([topic])
    safe = read_so_far = 0
    waiting: deque[tuple[int, Message]] = deque()

    def report(error: KafkaError | None, _: Message) -> None:
        nonlocal safe
        assert error is None, error
        safe += 1

    def store() -> None:
        while waiting and waiting[0][0] <= safe:
            consumer.store_offsets(waiting.popleft()[1])

    def write(message: Message) -> None:
        while True:
            try:
                if is_careful:
                    producer.produce(sink, message.value(), message.key(), on_delivery=report)
                else:
                    producer.produce(sink, message.value(), message.key())
            except BufferError:
                producer.poll(0.02)
            else:
                return

    def read() -> int:
        nonlocal read_so_far
        first = consumer.poll(_WAIT_S)
        if first is None:
            return 0
        messages = [first, *consumer.consume(MAX_CONCURRENT - 1, 0)]
        for message in messages:
            write(message)
        producer.poll(0)
        read_so_far += len(messages)
        if is_careful:
            waiting.append((read_so_far, messages[-1]))
            store()
        else:
            consumer.store_offsets(messages[-1])
        return len(messages)

    def end() -> None:
        producer.flush(60)
        store()
        consumer.commit(asynchronous=False)

    return read, end


if __name__ == "__main__":
    main()
