"""Member of a subscription to Pulsar topics."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final, cast

import pulsar

from headrace.core import UnsupportedError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced, StartPosition
from headrace.streaming.brokers.inbox import RETRY_PAUSE_S, Inbox, SharedSession
from headrace.streaming.brokers.pulsar.connection import PulsarLink
from headrace.streaming.brokers.pulsar.messages import (
    MessageId,
    PulsarMessage,
    offset_of,
    record_of,
)
from headrace.streaming.records import NewRecord, PartitionLag, TopicPartition

_WAIT_S: Final = 0.2


class PulsarReader:
    """One thread and one consumer of a topic, which it owns."""

    def __init__(
        self,
        consumer: pulsar.Consumer,
        partition: TopicPartition,
        inbox: Inbox[MessageId],
        name: str,
    ) -> None:
        self._consumer = consumer
        self._partition = partition
        self._inbox = inbox
        self._name = name
        self._is_closed = threading.Event()
        self.newest = 0
        """The highest offset received."""
        self._thread = threading.Thread(target=self._run, name="pulsar-reader", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why no records are received; empty if the connection is up."""
        return "" if self._consumer.is_connected() else f"{self._name} is unavailable"

    def last_offset(self) -> int:
        """Return the offset of the last message written, or else of the newest one received."""
        try:
            return offset_of(cast("MessageId", self._consumer.get_last_message_id()))
        except pulsar.PulsarException:
            return self.newest  # an empty topic has no last message

    def acknowledge(self, message_id: MessageId) -> None:
        """Acknowledge a message."""
        self._consumer.acknowledge(message_id)

    def close(self) -> None:
        """End the thread and the consumer; unacknowledged messages are redelivered."""
        self._is_closed.set()
        self._thread.join()
        try:
            self._consumer.close()
        except pulsar.PulsarException:
            return  # the broker is unavailable, and detects the closed connection

    def _run(self) -> None:
        while not self._is_closed.is_set():
            max_records, partitions = self._inbox.wait_for_demand(_WAIT_S)
            if not max_records or self._partition not in partitions:
                if max_records:
                    self._is_closed.wait(RETRY_PAUSE_S)
                continue
            try:
                message = cast("PulsarMessage", self._consumer.receive(int(_WAIT_S * 1000)))
            except pulsar.Timeout:
                continue
            except pulsar.PulsarException:
                self._is_closed.wait(RETRY_PAUSE_S)
                continue
            self.newest = max(self.newest, offset_of(message.message_id()))
            self._inbox.offer([(record_of(self._partition, message), message.message_id())])


_HEARTBEAT_S: Final = 1.0
_ACKS_WITHIN_S: Final = 0.15  # the client sends acknowledgements every 0.1 s
_QUEUE: Final = 1000
_BATCH_BITS: Final = 12
_LEDGER_BITS: Final = 32
Unsent = tuple[Sequence[NewRecord], Mapping[TopicPartition, Sequence[MessageId]]]
"""Records to write, and the messages to acknowledge with them."""


class PulsarSession(SharedSession[MessageId, Unsent]):
    """Session on Pulsar, at least once; see `ConsumerSession`.

    The broker detects dead members by their connections. The lag may include records that other
    members have not acknowledged.

    Args:
        link: Connection that the broker owns.
    """

    def __init__(
        self, link: PulsarLink, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        super().__init__(membership, listener, clock, heartbeat_s=_HEARTBEAT_S)
        self._readers: dict[TopicPartition, PulsarReader] = {}
        self._acked_at = 0.0
        self._link = link
        try:
            for partition in self._inbox.partitions:
                self._readers[partition] = PulsarReader(
                    self._subscribe(partition), partition, self._inbox, self._link.name
                )
        except BaseException:
            self.close()
            raise

    def _connection_problem(self) -> str:
        away = (reader.problem for reader in self._readers.values())
        return next((problem for problem in away if problem), "")

    def _subscribe(self, partition: TopicPartition) -> pulsar.Consumer:
        is_first = self._membership.start is StartPosition.EARLIEST
        position = pulsar.InitialPosition.Earliest if is_first else pulsar.InitialPosition.Latest
        with self._link.translating_errors(f"join group {self._membership.group}"):
            return self._link.client.subscribe(
                self._link.full_name(partition.topic),
                self._membership.group,
                consumer_type=pulsar.ConsumerType.Shared,
                consumer_name=self._membership.member,
                initial_position=position,
                receiver_queue_size=_QUEUE,
            )

    def _start(self, start_offsets: Mapping[TopicPartition, int]) -> None:
        if start_offsets:
            message = (
                "a member cannot read a Pulsar topic from its own offset: reset its "
                "state, or use a log, Kafka, NATS or Redis"
            )
            raise UnsupportedError(message)

    def _heartbeat(self, max_records: int, now: float) -> None:  # noqa: ARG002  # the connection proves liveness
        self._heartbeat_at = now + self._heartbeat_s

    def _prepare(
        self, records: Sequence[NewRecord], tokens: Mapping[TopicPartition, Sequence[MessageId]]
    ) -> Unsent:
        return records, tokens

    def _write(self, unsent: Unsent) -> None:
        records, tokens = unsent
        self._link.write(records)
        with self._link.translating_errors("acknowledge"):
            for partition, ids in tokens.items():
                for message_id in ids:
                    self._readers[partition].acknowledge(message_id)
        self._acked_at = self._clock.monotonic()

    def _confirm(self) -> None:
        time.sleep(max(self._acked_at + _ACKS_WITHIN_S - self._clock.monotonic(), 0))

    def _disconnect(self) -> None:
        self._inbox.close()
        for reader in self._readers.values():
            reader.close()

    def _update_lag(self) -> None:
        self._lag = {partition: self._lag_of(partition) for partition in self._readers}

    def _lag_of(self, partition: TopicPartition) -> PartitionLag:
        """Return the lag: unacknowledged records, and entries after the newest one received."""
        reader = self._readers[partition]
        last = reader.last_offset()
        held = [record for record, _ in self._inbox.held() if record.topic_partition == partition]
        beyond = 0
        if last > reader.newest:
            is_same = last >> _LEDGER_BITS == reader.newest >> _LEDGER_BITS
            beyond = (last >> _BATCH_BITS) - (reader.newest >> _BATCH_BITS) if is_same else 1
        oldest = self._inbox.oldest(partition)
        seconds = None if beyond else 0.0
        if oldest is not None:
            seconds = max(self._clock.now() - oldest.timestamp_s, 0)
        return PartitionLag(records=len(held) + beyond, seconds=seconds)
