"""Member of a subscription to Pulsar topics."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, Final

import pulsar

from headrace.core import HeadraceError, UnsupportedError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced, StartPosition
from headrace.streaming.brokers.inbox import RETRY_PAUSE_S, Inbox, SharedSession
from headrace.streaming.brokers.pulsar.connection import PulsarLink
from headrace.streaming.brokers.pulsar.messages import record_of
from headrace.streaming.records import NewRecord, PartitionLag, TopicPartition

_WAIT_S: Final = 0.2


class PulsarReader:
    """One thread and one consumer of a partition, which it owns."""

    def __init__(
        self,
        consumer: pulsar.Consumer,
        partition: TopicPartition,
        inbox: Inbox[pulsar.MessageId],
        name: str,
    ) -> None:
        self.consumer = consumer
        self._partition = partition
        self._inbox = inbox
        self._name = name
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulsar-reader", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why no records are received; empty if the connection is up."""
        return "" if self.consumer.is_connected() else f"{self._name} is unavailable"

    def close(self) -> None:
        """End the thread and the consumer; unacknowledged messages are redelivered."""
        self._is_closed.set()
        self._thread.join()
        try:
            self.consumer.close()
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
                message = self.consumer.receive(int(_WAIT_S * 1000))
            except pulsar.Timeout:
                continue
            except pulsar.PulsarException:
                self._is_closed.wait(RETRY_PAUSE_S)
                continue
            self._inbox.offer([(record_of(self._partition, message), message.message_id())])


_HEARTBEAT_S: Final = 1.0
_ACKS_WITHIN_S: Final = 0.15  # the client sends acknowledgements every 0.1 s
_QUEUE: Final = 1000
_PARTITIONS_EVERY_S: Final = 30.0


class PulsarSession(SharedSession[pulsar.MessageId]):
    """Session on Pulsar, at least once; see `ConsumerSession`.

    The broker detects dead members by their connections, and decides which member gets a record of
    a partition. Another thread measures the lag, and finds partitions that are added.

    Args:
        link: Connection that the broker owns.
    """

    _has_partitions: ClassVar[bool] = True

    def __init__(
        self, link: PulsarLink, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        names = _names(link, membership)
        super().__init__(
            membership, listener, clock, heartbeat_s=_HEARTBEAT_S, partitions=tuple(names)
        )
        self._readers: dict[TopicPartition, PulsarReader] = {}
        self._acked_at = 0.0
        self._link = link
        self._names = names
        self._names_at = clock.monotonic() + _PARTITIONS_EVERY_S
        self._lag_error: HeadraceError | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pulsar-lag")
        self._measurement: Future[None] | None = None
        try:
            for partition, name in names.items():
                self._open(partition, name, membership.start)
            self._measure()
        except BaseException:
            self.close()
            raise

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """Return the lag; see `ConsumerSession`. Only the admin API has it: it may be unknown."""
        if self._lag_error is not None:
            raise type(self._lag_error)(*self._lag_error.args) from self._lag_error
        return super().lag()

    def _connection_problem(self) -> str:
        away = (reader.problem for reader in self._readers.values())
        return next((problem for problem in away if problem), "")

    def _open(self, partition: TopicPartition, name: str, start: StartPosition) -> None:
        is_first = start is StartPosition.EARLIEST
        position = pulsar.InitialPosition.Earliest if is_first else pulsar.InitialPosition.Latest
        with self._link.translating_errors(f"join group {self._membership.group}"):
            consumer = self._link.client.subscribe(
                name,
                self._membership.group,
                consumer_type=self._link.consumer_type,
                consumer_name=self._membership.member,
                initial_position=position,
                receiver_queue_size=_QUEUE,
            )
        self._readers[partition] = PulsarReader(consumer, partition, self._inbox, self._link.name)

    def _start(self, start_offsets: Mapping[TopicPartition, int]) -> None:
        if start_offsets:
            message = (
                "a member cannot read a Pulsar topic from its own offset: reset its "
                "state, or use a log, Kafka, NATS or Redis"
            )
            raise UnsupportedError(message)

    def _heartbeat(self, max_records: int, now: float) -> None:  # noqa: ARG002  # the connection proves liveness
        """Open partitions that were added."""
        for partition in self._names.keys() - self._readers.keys():
            self._inbox.add(partition)
            self._open(partition, self._names[partition], StartPosition.EARLIEST)
            self._listener.on_assigned([partition])
        self._heartbeat_at = now + self._heartbeat_s

    def _write(
        self,
        records: Sequence[NewRecord],
        tokens: Mapping[TopicPartition, Sequence[pulsar.MessageId]],
    ) -> None:
        self._link.write(records)
        with self._link.translating_errors("acknowledge"):
            for partition, ids in tokens.items():
                for message_id in ids:
                    self._readers[partition].consumer.acknowledge(message_id)
        self._acked_at = self._clock.monotonic()

    def _confirm(self) -> None:
        time.sleep(max(self._acked_at + _ACKS_WITHIN_S - self._clock.monotonic(), 0))

    def _disconnect(self) -> None:
        self._inbox.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        for reader in self._readers.values():
            reader.close()

    def _update_lag(self) -> None:
        if self._measurement is not None:
            if not self._measurement.done():
                return
            self._measurement.result()
        self._measurement = self._thread.submit(self._measure)

    def _measure(self) -> None:
        """Measure the lag of the group, and find partitions that are added now and then."""
        try:
            now = self._clock.monotonic()
            if now >= self._names_at:
                self._names_at = now + _PARTITIONS_EVERY_S
                self._names = _names(self._link, self._membership)
            lag: dict[TopicPartition, PartitionLag] = {}
            for topic in dict.fromkeys(self._membership.topics):
                name = self._link.full_name(topic)
                is_partitioned = self._names.get(TopicPartition(topic, 0)) != name
                backlogs = self._link.admin.backlogs(
                    name, self._membership.group, is_partitioned=is_partitioned
                )
                lag |= {
                    partition: backlogs[full_name].lag(self._clock.now())
                    for partition, full_name in self._names.items()
                    if full_name in backlogs
                }
            self._lag, self._lag_error = lag, None
        except HeadraceError as error:
            self._lag_error = error


def _names(link: PulsarLink, membership: Membership) -> dict[TopicPartition, str]:
    """Return the full names of all partitions that a member reads."""
    names: dict[TopicPartition, str] = {}
    for topic in membership.topics:
        names |= link.partitions(topic)
    return names
