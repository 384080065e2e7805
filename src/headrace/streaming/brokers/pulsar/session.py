"""Member of a subscription to Pulsar topics."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar, Final

import pulsar

from headrace.core import HeadraceError, UnsupportedError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced, StartPosition
from headrace.streaming.brokers.inbox import ReadingThread, SharedSession
from headrace.streaming.brokers.pulsar.connection import PulsarLink
from headrace.streaming.brokers.pulsar.messages import record_of
from headrace.streaming.records import NewRecord, PartitionLag, TopicPartition

_RECEIVE_MS: Final = 200
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
        self._consumers: dict[TopicPartition, pulsar.Consumer] = {}
        self._readers: list[ReadingThread[pulsar.MessageId]] = []
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
        is_up = all(consumer.is_connected() for consumer in self._consumers.values())
        return "" if is_up else f"{self._link.name} is unavailable"

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

        def receive(_max_records: int, _partitions: Sequence[TopicPartition]) -> None:
            with self._link.translating_errors(f"read {name}"), suppress(pulsar.Timeout):
                message = consumer.receive(_RECEIVE_MS)
                self._inbox.offer([(record_of(partition, message), message.message_id())])

        self._consumers[partition] = consumer
        self._readers.append(ReadingThread(self._inbox, receive, among=(partition,)))
        self._readers[-1].start()

    def _start(self, start_offsets: Mapping[TopicPartition, int]) -> None:
        if start_offsets:
            message = (
                "a member cannot read a Pulsar topic from its own offset: reset its "
                "state, or use a log, Kafka, NATS or Redis"
            )
            raise UnsupportedError(message)

    def _heartbeat(self, max_records: int, *, is_due: bool) -> None:  # noqa: ARG002  # the connection proves liveness
        """Open partitions that were added."""
        for partition in self._names.keys() - self._consumers.keys():
            self._inbox.add(partition)
            self._open(partition, self._names[partition], StartPosition.EARLIEST)
            self._listener.on_assigned([partition])

    def _write(
        self,
        records: Sequence[NewRecord],
        tokens: Mapping[TopicPartition, Sequence[pulsar.MessageId]],
    ) -> None:
        self._link.write(records)
        with self._link.translating_errors("acknowledge"):
            for partition, ids in tokens.items():
                for message_id in ids:
                    self._consumers[partition].acknowledge(message_id)
        self._acked_at = self._clock.monotonic()

    def _confirm(self) -> None:
        time.sleep(max(self._acked_at + _ACKS_WITHIN_S - self._clock.monotonic(), 0))

    def _disconnect(self) -> None:
        self._inbox.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        for reader in self._readers:
            reader.join()
        for consumer in self._consumers.values():
            with suppress(pulsar.PulsarException):  # the broker detects the closed connection
                consumer.close()

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
