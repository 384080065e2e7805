"""Broker for NATS JetStream (2.10 and later): a topic is a subject, stored by a stream.

A created topic has its own stream; an existing one is read from the stream that stores it, perhaps
with other subjects. Offsets are the stream's sequence numbers. The members of a group share a topic
message by message. Messages of a dead member are redelivered after its session timeout; at once
when it leaves, or another member takes its name.

Exactly-once delivery uses message ids: an answer that was written is dropped when it is written
again within the stream's duplicate window (two minutes, `?duplicate_window_s=`). A Headrace stream
that stops between writing answers and acknowledging their input, for longer than that, writes them
twice.
"""

import datetime as dt
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from nats.js import api

from headrace.core import (
    Clock,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SystemClock,
)
from headrace.streaming.broker import BrokerFeatures, Membership, Rebalanced
from headrace.streaming.brokers.checks import (
    check_membership,
    check_one_partition,
    check_partition,
    check_records,
    check_text,
    check_topic,
    positive,
    split_options,
)
from headrace.streaming.brokers.nats import connection as groups
from headrace.streaming.brokers.nats.connection import TIMEOUT_S, NatsLink, publish
from headrace.streaming.brokers.nats.messages import record_of
from headrace.streaming.brokers.nats.session import NatsSession
from headrace.streaming.records import NewRecord, Record, TopicPartition

RETENTION_S: Final = 7 * 86_400.0
DUPLICATE_WINDOW_S: Final = 120.0
_ACK_WAIT_S: Final = 10.0
_BATCH_SIZE: Final = 1000
_MIN_RECORDS_PER_S: Final = 1000
"""Slowest rate at which records are read."""
_READ_TIMEOUT_S: Final = 4.0
_INACTIVE_S: Final = 10.0


class NatsBroker:
    """Broker for NATS JetStream; see `Broker`. It connects on first use."""

    abilities = BrokerFeatures(
        exactly_once="answers with ids, dropped if written already within the duplicate window, "
        "and confirmed acknowledgements after them"
    )

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        names = ("duplicate_window_s", "retention_s", "replicas")
        self._url, options = split_options(url, names)
        self._retention_s = positive(options, "retention_s", RETENTION_S)
        self._window_s = min(
            positive(options, "duplicate_window_s", DUPLICATE_WINDOW_S), self._retention_s
        )
        self._replicas = int(positive(options, "replicas", 1))
        self._clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._opened: NatsLink | None = None
        self._is_closed = False

    def join(self, membership: Membership, listener: Rebalanced) -> NatsSession:
        """Join a group; see `Broker`."""
        check_membership(membership)
        groups.consumer_of(membership.group)
        groups.consumer_of(membership.member)
        for topic in membership.topics:
            _check_subject(topic)
        self._link()
        return NatsSession(self._url, membership, listener, self._clock)

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> None:  # noqa: ARG002  # no limit per topic
        """Create a stream for a subject unless one stores it; see `Broker`."""
        _check_subject(topic)
        check_one_partition(partitions, kind="NATS")
        link = self._link()
        link.ask(f"create topic {topic}", self._create(link, topic))

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records; see `Broker`. After an error, some may have been written."""
        check_records(records)
        link = self._link()
        for start in range(0, len(records), _BATCH_SIZE):
            some = records[start : start + _BATCH_SIZE]
            link.ask("write records", publish(link, some, sender=""))

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on; see `Broker`."""
        _check_subject(topic)
        for partition in after:
            check_partition(partition)
        link = self._link()
        records: list[Record] = []
        for partition, offset in after.items():
            if max_records > len(records):
                some = self._read(link, partition, offset, max_records - len(records))
                # An unresponsive server ends one fetch; this limits the total time of a slow one.
                limit_s = TIMEOUT_S + (max_records - len(records)) / _MIN_RECORDS_PER_S
                records += link.ask(f"read {partition.topic}", some, timeout_s=limit_s)
        return records

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return first and next offsets of the stream that stores the topic; see `Broker`."""
        _check_subject(topic)
        link = self._link()
        return {
            TopicPartition(topic, 0): link.ask(f"look at topic {topic}", self._ends(link, topic))
        }

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Return offsets by time; see `Broker`."""
        _check_subject(topic)
        start = dt.datetime.fromtimestamp(max(at_s, 0), dt.UTC)
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_TIME, opt_start_time=start
        )
        link = self._link()
        offset = link.ask(f"look at topic {topic}", self._first_of(link, topic, config))
        return {TopicPartition(topic, 0): offset}

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Return the offset below which all records are acknowledged; see `Broker`."""
        _check_subject(topic)
        check_text("group", group)
        link = self._link()
        info = link.ask(f"look at group {group}", self._info(link, group, topic))
        return {} if info is None else {TopicPartition(topic, 0): groups.position_of(info)}

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set committed offsets; see `Broker`."""
        check_text("group", group)
        link = self._link()
        for partition, offset in offsets.items():
            check_partition(partition)
            _, following = self.ends(partition.topic)[partition]
            if not 0 <= offset <= following:
                raise InvalidArgumentError(f"{partition.topic}/0 ends at {following}, not {offset}")
        for partition, offset in offsets.items():
            link.ask(f"move group {group}", self._move(link, group, partition.topic, offset))

    def close(self) -> None:
        """Close the connection; sessions have their own. Idempotent."""
        with self._lock:
            self._is_closed = True
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _link(self) -> NatsLink:
        with self._lock:
            if self._is_closed:
                raise FailedPreconditionError("this broker is closed; open it again")
            if self._opened is None:
                self._opened = NatsLink(self._url)
            self._opened.check_connected()
            return self._opened

    async def _create(self, link: NatsLink, topic: str) -> None:
        with suppress(NotFoundError):
            await groups.stream_of(link, topic)
            return
        config = api.StreamConfig(
            name=topic.replace(".", "="),
            subjects=[topic],
            max_age=self._retention_s,
            duplicate_window=self._window_s,
            num_replicas=self._replicas,
            allow_direct=True,
        )
        await link.stream_api.add_stream(config)

    async def _ends(self, link: NatsLink, topic: str) -> tuple[int, int]:
        info = await link.stream_api.stream_info(await groups.stream_of(link, topic))
        following = info.state.last_seq + 1
        return (max(info.state.first_seq, 1) if info.state.messages else following, following)

    async def _first_of(self, link: NatsLink, topic: str, config: api.ConsumerConfig) -> int:
        """Return where a consumer with this configuration would start."""
        stream = await groups.stream_of(link, topic)
        info = await link.stream_api.add_consumer(stream, _ephemeral(config, topic))
        await link.stream_api.delete_consumer(stream, info.name)
        assert info.delivered is not None
        return info.delivered.stream_seq + 1

    async def _read(
        self, link: NatsLink, partition: TopicPartition, offset: int, max_records: int
    ) -> list[Record]:
        stream = await groups.stream_of(link, partition.topic)
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=max(offset, 1)
        )
        info = await link.stream_api.add_consumer(stream, _ephemeral(config, partition.topic))
        records: list[Record] = []
        count = min(max_records, info.num_pending or 0)
        reader = await link.stream_api.pull_subscribe_bind(consumer=info.name, stream=stream)
        try:
            while len(records) < count:
                batch = min(count - len(records), _BATCH_SIZE)
                messages = await reader.fetch(batch, timeout=_READ_TIMEOUT_S)
                records += [record_of(partition, message) for message in messages]
        finally:
            await reader.unsubscribe()
            await link.stream_api.delete_consumer(stream, info.name)
        return records

    async def _info(self, link: NatsLink, group: str, topic: str) -> api.ConsumerInfo | None:
        stream = await groups.stream_of(link, topic)
        return await groups.info_of(link, stream, groups.consumer_of(group))

    async def _move(self, link: NatsLink, group: str, topic: str, offset: int) -> None:
        stream = await groups.stream_of(link, topic)
        if await groups.responds(link, groups.group_subject(topic, group)):
            message = f"a member of group '{group}' runs; stop the stream first"
            raise FailedPreconditionError(message)
        await groups.move(link, stream, topic, group, offset=offset, ack_wait_s=_ACK_WAIT_S)


def _ephemeral(config: api.ConsumerConfig, topic: str) -> api.ConsumerConfig:
    """Return the configuration of a short-lived consumer."""
    return config.evolve(
        ack_policy=api.AckPolicy.NONE,
        filter_subject=topic,
        inactive_threshold=_INACTIVE_S,
        mem_storage=True,
    )


def _check_subject(topic: str) -> None:
    check_topic(topic)
    if "" in topic.split("."):
        message = f"topic '{topic}' is not a NATS subject: no token between dots may be empty"
        raise InvalidArgumentError(message)
