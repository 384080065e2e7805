"""Broker for Apache Pulsar, at least once: a group is a subscription of that name.

`?subscription=` is its type: the members of a `shared` subscription (the default) share each
partition record by record; of `failover`, one member reads a partition; of `key_shared`, one member
reads a key. A topic without partitions has partition 0 only. Pulsar detects a member that leaves or
dies by its closed connection, regardless of its session timeout. Lag and offsets of groups come
from the admin API (`?admin=`; by default port 8080 of the same host, 8443 with TLS). Pulsar creates
a topic on first use, and deletes records that all subscriptions have acknowledged unless the
namespace has a `retention`. Its Python client has no transactions.

Once pulsar-client 3.13 is imported, exceptions of other pybind11 modules that have no registered
type become RuntimeError: runtimes distinguish such errors by their text.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

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
    check_records,
    check_text,
    check_topic,
)
from headrace.streaming.brokers.pulsar.connection import PulsarLink
from headrace.streaming.brokers.pulsar.messages import entry_offset, id_of, offset_of, record_of
from headrace.streaming.brokers.pulsar.session import PulsarSession
from headrace.streaming.records import NewRecord, Record, TopicPartition

_READ_MS: Final = 3000


class PulsarBroker:
    """Broker for Pulsar; see `Broker`. It connects on first use."""

    abilities = BrokerFeatures()

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._clock = SystemClock() if clock is None else clock
        self._link = PulsarLink(url)

    def join(self, membership: Membership, listener: Rebalanced) -> PulsarSession:
        """Join a group; see `Broker`."""
        check_membership(membership)
        if membership.delivery is Delivery.EXACTLY_ONCE:
            message = "Pulsar streams support only at_least_once; use a log, Kafka, NATS or Redis"
            raise UnsupportedError(message)
        if membership.start_s is not None:
            for topic in membership.topics:
                committed = self.committed(membership.group, topic)
                offsets = self.offsets_at(topic, membership.start_s).items()
                new = {
                    partition: offset for partition, offset in offsets if partition not in committed
                }
                self.set_committed(membership.group, new)
        return PulsarSession(self._link, membership, listener, self._clock)

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> None:  # noqa: ARG002  # no limit per topic
        """Create a topic by opening a producer, with partitions by the admin API; see `Broker`."""
        check_topic(topic)
        if partitions < 1:
            raise InvalidArgumentError(f"a topic needs at least 1 partition, not {partitions}")
        if partitions > 1:
            self._link.admin.create_partitions(self._link.full_name(topic), partitions)
        self._link.producer(topic)

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records; see `Broker`. After an error, some may have been written."""
        check_records(records, has_partitions=True)
        self._link.write(records)

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on; see `Broker`."""
        check_topic(topic)
        records: list[Record] = []
        for partition, offset in after.items():
            records += self._read(partition, offset, max_records - len(records))
        return records

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return first and next offsets; see `Broker`."""
        check_topic(topic)
        ends: dict[TopicPartition, tuple[int, int]] = {}
        for partition, name in self._link.partitions(topic).items():
            first = self._read(partition, 0, 1)
            # A broker does not return the last offset of an empty topic.
            ends[partition] = (first[0].offset, self._last(name) + 1) if first else (0, 0)
        return ends

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Return offsets by time of publishing; see `Broker`."""
        offsets: dict[TopicPartition, int] = {}
        for partition, (_, end) in self.ends(topic).items():
            later = self._read(partition, 0, 1, since_s=at_s)
            offsets[partition] = later[0].offset if later else end
        return offsets

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Return the offset below which all records are acknowledged; see `Broker`."""
        check_topic(topic)
        check_text("group", group)
        return {
            partition: entry_offset(*position)
            for partition, name in self._link.partitions(topic).items()
            if (position := self._link.admin.position(name, group)) is not None
        }

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set committed offsets, as the only member of the group; see `Broker`."""
        check_text("group", group)
        ends: dict[TopicPartition, tuple[int, int]] = {}
        for topic in {partition.topic for partition in offsets}:
            ends |= self.ends(topic)
        for partition, offset in offsets.items():
            if not 0 <= offset <= ends.get(partition, (0, 0))[1]:
                message = f"{partition} ends at {ends.get(partition)}, not {offset}"
                raise InvalidArgumentError(message)
        for partition, offset in offsets.items():
            is_end = offset == ends[partition][1]
            with self._link.translating_errors(f"move group {group}"):
                try:
                    consumer = self._link.client.subscribe(
                        self._link.full_name_of(partition), group
                    )
                except pulsar.ConsumerBusy as error:
                    message = f"a member of group '{group}' runs; stop the stream first"
                    raise FailedPreconditionError(message) from error
                consumer.seek(pulsar.MessageId.latest if is_end else id_of(offset))
                consumer.close()

    def close(self) -> None:
        """Close all connections, including those of sessions. Idempotent."""
        self._link.close()

    def _last(self, full_name: str) -> int:
        """Return the offset of the last record, by a temporary subscription."""
        name = f"headrace-look-{secrets.token_hex(8)}"
        with self._link.translating_errors(f"look at {full_name}"):
            consumer = self._link.client.subscribe(full_name, name)
            try:
                return offset_of(consumer.get_last_message_id())
            finally:
                consumer.unsubscribe()

    def _read(
        self, partition: TopicPartition, offset: int, max_records: int, *, since_s: float = 0.0
    ) -> list[Record]:
        """Return records from this offset on, or from those that were written since then on."""
        if offset < 0:
            raise InvalidArgumentError(f"{partition} begins at 0, not {offset}")
        records: list[Record] = []
        with self._link.translating_errors(f"read {partition.topic}"):
            reader = self._link.client.create_reader(
                self._link.full_name_of(partition),
                pulsar.MessageId.earliest if offset == 0 else id_of(offset),
                start_message_id_inclusive=True,
            )
            try:
                if since_s > 0:
                    reader.seek(math.ceil(since_s * 1000))
                while len(records) < max_records and reader.has_message_available():
                    record = record_of(partition, reader.read_next(_READ_MS))
                    if record.offset >= offset:
                        records.append(record)
            except (pulsar.Timeout, pulsar.UnknownError):
                return records  # some brokers do not report that a topic is empty
            finally:
                reader.close()
        return records
