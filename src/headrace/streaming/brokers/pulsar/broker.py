"""Broker for Apache Pulsar, at least once: a group is a Shared subscription of that name.

The members of a group share a topic record by record. Pulsar detects a member that leaves or dies
by its closed connection, regardless of its session timeout. Group offsets can be read and changed
only with Pulsar's admin API, which is not supported. Pulsar creates a topic on first use, and
deletes records that all subscriptions have acknowledged unless the namespace has a `retention`.

Once pulsar-client 3.13 is imported, exceptions of other pybind11 modules that have no registered
type become RuntimeError: runtimes distinguish such errors by their text.
"""

import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, cast

import pulsar

from headrace.core import (
    Clock,
    FailedPreconditionError,
    InvalidArgumentError,
    SystemClock,
    UnsupportedError,
)
from headrace.streaming.broker import BrokerFeatures, Delivery, Membership, Rebalanced
from headrace.streaming.brokers.checks import (
    check_membership,
    check_one_partition,
    check_partition,
    check_records,
    check_topic,
)
from headrace.streaming.brokers.pulsar.connection import PulsarLink
from headrace.streaming.brokers.pulsar.messages import (
    MessageId,
    PulsarMessage,
    id_of,
    offset_of,
    record_of,
)
from headrace.streaming.brokers.pulsar.session import PulsarSession
from headrace.streaming.records import NewRecord, Record, TopicPartition

_READ_MS: Final = 3000


class PulsarBroker:
    """Broker for Pulsar; see `Broker`. It connects on first use."""

    abilities = BrokerFeatures(by_time=False)

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._clock = SystemClock() if clock is None else clock
        self._link = PulsarLink(url)
        self._lock = threading.Lock()
        self._is_closed = False

    def join(self, membership: Membership, listener: Rebalanced) -> PulsarSession:
        """Join a group; see `Broker`."""
        self._check_open()
        check_membership(membership)
        if membership.delivery is Delivery.EXACTLY_ONCE:
            message = "Pulsar streams support only at_least_once; use a log, Kafka, NATS or Redis"
            raise UnsupportedError(message)
        if membership.start_s is not None:
            raise UnsupportedError("a Pulsar group can start only at the earliest or latest record")
        return PulsarSession(self._link, membership, listener, self._clock)

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> None:  # noqa: ARG002  # no limit per topic
        """Create a topic by opening a producer; see `Broker`."""
        self._check_open()
        check_topic(topic)
        check_one_partition(partitions, kind="Pulsar")
        self._link.producer(topic)

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records; see `Broker`. After an error, some may have been written."""
        self._check_open()
        check_records(records)
        self._link.write(records)

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on; see `Broker`."""
        self._check_open()
        check_topic(topic)
        records: list[Record] = []
        for partition, offset in after.items():
            check_partition(partition)
            records += self._read(partition, offset, max_records - len(records))
        return records

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return first and next offsets; see `Broker`."""
        self._check_open()
        check_topic(topic)
        partition = TopicPartition(topic, 0)
        first = self._read(partition, 0, 1)
        # A broker does not return the last offset of an empty topic.
        return {partition: (first[0].offset, self._last(topic) + 1) if first else (0, 0)}

    def offsets_at(self, topic: str, at_s: float) -> NoReturn:  # noqa: ARG002  # see `Broker`
        """Raise UnsupportedError: Pulsar's client cannot find offsets by time."""
        self._check_open()
        raise UnsupportedError("Pulsar cannot find offsets by time; start at the earliest record")

    def committed(self, group: str, topic: str) -> NoReturn:  # noqa: ARG002  # see `Broker`
        """Raise UnsupportedError: only Pulsar's admin API returns positions."""
        self._check_open()
        message = f"only `pulsar-admin topics stats` shows the position of group '{group}'"
        raise UnsupportedError(message)

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> NoReturn:
        """Raise UnsupportedError: only Pulsar's admin API moves groups."""
        self._check_open()
        names = ", ".join(partition.topic for partition in offsets)
        message = (
            f"move group '{group}' with `pulsar-admin topics reset-cursor {names}`, or use a "
            "new group"
        )
        raise UnsupportedError(message)

    def close(self) -> None:
        """Close all connections, including those of sessions. Idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._link.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise FailedPreconditionError("this broker is closed; open it again")

    def _last(self, topic: str) -> int:
        """Return the offset of the last record, by a temporary subscription."""
        name = f"headrace-look-{secrets.token_hex(8)}"
        with self._link.translating_errors(f"look at topic {topic}"):
            consumer = self._link.client.subscribe(self._link.full_name(topic), name)
            try:
                return offset_of(cast("MessageId", consumer.get_last_message_id()))
            finally:
                consumer.unsubscribe()

    def _read(self, partition: TopicPartition, offset: int, max_records: int) -> list[Record]:
        if offset < 0:
            raise InvalidArgumentError(f"{partition.topic}/0 begins at 0, not {offset}")
        records: list[Record] = []
        with self._link.translating_errors(f"read {partition.topic}"):
            reader = self._link.client.create_reader(
                self._link.full_name(partition.topic),
                pulsar.MessageId.earliest if offset == 0 else id_of(offset),
                start_message_id_inclusive=True,
            )
            try:
                while len(records) < max_records and reader.has_message_available():
                    record = record_of(partition, cast("PulsarMessage", reader.read_next(_READ_MS)))
                    if record.offset >= offset:
                        records.append(record)
            except (pulsar.Timeout, pulsar.UnknownError):
                return records  # some brokers do not report that a topic is empty
            finally:
                reader.close()
        return records
