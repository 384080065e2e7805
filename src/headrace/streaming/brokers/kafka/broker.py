"""Broker for Apache Kafka, or servers that implement its protocol.

`kafka://HOST:PORT[,HOST:PORT]?option=value`, where options are those of librdkafka, such as
`security.protocol=SASL_SSL&sasl.mechanism=SCRAM-SHA-512&sasl.username=me&sasl.password=${PASSWORD}`;
`properties_file=PATH` reads more of them. With `membership=dynamic`, partitions move when a member
restarts (by default a restarted member keeps its partitions); `compression=zstd` compresses written
records. Kafka does not create topics automatically.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from confluent_kafka import Consumer, KafkaError, Message, Producer

from headrace.core import (
    Clock,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SystemClock,
    UnavailableError,
)
from headrace.streaming.broker import (
    BrokerFeatures,
    Delivery,
    GroupProtocol,
    Membership,
    Rebalanced,
)
from headrace.streaming.brokers.checks import check_membership, check_text, check_topic
from headrace.streaming.brokers.kafka.assignment import UnassignedPartitions, visit
from headrace.streaming.brokers.kafka.client import (
    ClientHealth,
    Writing,
    check_new,
    client_log,
)
from headrace.streaming.brokers.kafka.offsets import Assigning
from headrace.streaming.brokers.kafka.producers import (
    AtLeastOnceProducer,
    ExactlyOnceProducer,
    Writer,
)
from headrace.streaming.brokers.kafka.reader import (
    EndOffsets,
    KafkaAdmin,
    KafkaReader,
    create_client,
)
from headrace.streaming.brokers.kafka.session import KafkaSession
from headrace.streaming.brokers.kafka.url import kafka_options
from headrace.streaming.records import NewRecord, Record, TopicPartition

_log = logging.getLogger(__name__)
_MAX_PARTITIONS: Final = 100_000
_SEND_S: Final = 30.0
_CREATE_TIMEOUT_S: Final = 10.0
_POLL_EVERY_S: Final = 0.02
_LIMIT: Final = "max.message.bytes"
_DEFAULT_LIMIT_BYTES: Final = 1_000_000
"""Limit of a topic whose configuration cannot be read; less than the default of Kafka."""
_FRAME_BYTES: Final = 1024
"""Difference between the sizes of a record and of its request."""
_HEADERS_BYTES: Final = 16 << 10
"""Room for the headers of a dead letter."""


class KafkaBroker:
    """Broker for Apache Kafka; see `Broker`. It connects on first use."""

    abilities = BrokerFeatures(
        exactly_once="answers and offsets in one transaction of Kafka's",
        partitions=True,
        rebalances=True,
    )

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._options = kafka_options(url)
        self._clock = SystemClock() if clock is None else clock
        self._reader = KafkaReader(self._options, self._clock)
        self._admin = KafkaAdmin(self._options, self._clock)
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._limits: dict[str, int] = {}
        """Largest request of each topic that `create_topic` was called for."""
        self._protocols: dict[str, GroupProtocol] = {}
        """Protocol of each group that was joined."""
        self._is_closed = False

    def join(self, membership: Membership, listener: Rebalanced) -> KafkaSession:
        """Join a group; see `Broker`."""
        check_membership(membership)
        counts = {topic: self._reader.partitions(topic) for topic in membership.topics}
        options, address = self._options, self._options.address
        protocol = self._protocol(membership)
        assigning = Assigning(
            membership=membership,
            is_cooperative=options.is_cooperative(protocol),
            timeout_s=options.max_assign_s,
            address=address,
            clock=self._clock,
        )
        health = ClientHealth(address)
        member_settings = options.member(membership, protocol)
        unassigned = None
        if protocol is GroupProtocol.CLASSIC and assigning.is_cooperative and options.is_static:
            unassigned = UnassignedPartitions(
                partial(self._admin.request_group, membership.group),
                partial(visit, member_settings, membership.topics, address),
                counts,
                self._clock,
            )
        session = KafkaSession(
            membership,
            listener,
            assigning,
            end_offsets=EndOffsets(self._admin, self._clock),
            check_topic=self._reader.check_topic,
            unassigned=unassigned,
            health=health,
            clock=self._clock,
        )
        settings = {
            **member_settings,
            "error_cb": health.on_error,
            "on_commit": session.on_commit,
            "stats_cb": health.on_statistics,
            "logger": client_log,
        }
        consumer = create_client(lambda: Consumer(settings), address)
        try:
            session.start(consumer, self._writer(membership, consumer, health, assigning.counts))
        except BaseException:
            consumer.close()
            raise
        return session

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> int:
        """Create a topic unless it exists; see `Broker`."""
        check_topic(topic)
        if not 1 <= partitions <= _MAX_PARTITIONS:
            message = f"a topic has 1 to {_MAX_PARTITIONS} partitions, not {partitions}"
            raise InvalidArgumentError(message)
        try:
            self._reader.partitions(topic)
        except NotFoundError:
            limit_bytes = None
            if like:
                partitions = self._reader.partitions(like)
                limit_bytes = self._admin.topic_limit(like)
            config = {_LIMIT: str(limit_bytes + _HEADERS_BYTES)} if limit_bytes else {}
            self._admin.create_topic(topic, partitions, config)
            self._wait_for(topic)
            self._limits.pop(topic, None)
        if topic not in self._limits:
            self._limits[topic] = self._admin.topic_limit(topic) or _DEFAULT_LIMIT_BYTES
        return min(self._limits[topic], self._options.limit_bytes) - _FRAME_BYTES

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records, and wait for acknowledgements; see `Broker`."""
        check_new(records, limit_bytes=self._options.limit_bytes)
        for topic in {record.topic for record in records}:
            self._reader.check_topic(check_topic(topic))
        with self._lock:
            try:
                self._write(records)
            except BaseException:
                self._producer = None  # it may be unusable; the next call creates a new one
                raise

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return committed records from these offsets on; see `Broker`."""
        return self._reader.read(topic, after, max_records)

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return first and next offsets, including transaction markers; see `Broker`."""
        return self._reader.ends(topic)

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Return offsets by time; see `Broker`."""
        return self._reader.offsets_at(topic, at_s)

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Return committed offsets; see `Broker`."""
        count = self._reader.partitions(topic)
        return self._admin.committed(
            group, [TopicPartition(topic, number) for number in range(count)]
        )

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set committed offsets; see `Broker`."""
        check_text("group", group)
        self._reader.check_offsets(offsets)
        self._admin.set_committed(group, offsets)

    def close(self) -> None:
        """Close connections; sessions have their own. Idempotent."""
        with self._lock:
            self._is_closed = True
            self._producer = None
        self._reader.close()

    def _write(self, records: Sequence[NewRecord]) -> None:
        failed: list[tuple[KafkaError, str]] = []

        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.append((error, message.topic() or ""))

        if self._is_closed:
            raise FailedPreconditionError("this broker is closed; open it again")
        if self._producer is None:
            settings = {**self._options.producer(), "logger": client_log}
            self._producer = create_client(lambda: Producer(settings), self._options.address)
        writing = self._writing(self._producer)
        writing.put(records, report)
        left = writing.flush(_SEND_S)
        if failed:
            raise writing.failed(failed[0][0], None, failed[0][1])
        if left:
            self._producer.purge()
            message = (
                f"Kafka at {self._options.address} has not confirmed {left} of {len(records)} "
                f"records within {_SEND_S:g} s; it may have taken them"
            )
            raise UnavailableError(message)

    def _wait_for(self, topic: str) -> None:
        """Wait until all servers know a new topic."""
        until = self._clock.monotonic() + _CREATE_TIMEOUT_S
        while True:
            try:
                self._reader.ends(topic)
            except (NotFoundError, UnavailableError):
                if self._clock.monotonic() >= until:
                    raise
                time.sleep(_POLL_EVERY_S)
            else:
                return

    def _writing(self, producer: Producer) -> Writing:
        options = self._options
        return Writing(
            producer,
            limit_bytes=options.limit_bytes,
            address=options.address,
            clock=self._clock,
            limits=self._limits,
            lingers=options.lingers,
        )

    def _protocol(self, membership: Membership) -> GroupProtocol:
        """Return the protocol to join with, with which `session_timeout_s` applies."""
        protocol, group = membership.protocol, membership.group
        timeout_ms = round(membership.session_timeout_s * 1000)
        if group in self._protocols:
            return self._protocols[group]
        if protocol is GroupProtocol.CONSUMER:
            try:
                self._admin.set_session_timeout(group, timeout_ms)
            except UnavailableError as error:  # no controller: members need only the coordinator
                extra = {"group": group, "error": str(error)}
                _log.warning("joining with the session timeout that the group has", extra=extra)
                return protocol
        elif protocol is GroupProtocol.AUTO:
            current_ms = self._admin.session_timeout_ms(group)
            is_short = current_ms is not None and current_ms <= timeout_ms
            protocol = GroupProtocol.CONSUMER if is_short else GroupProtocol.CLASSIC
        self._protocols[group] = protocol
        return protocol

    def _writer(
        self,
        membership: Membership,
        consumer: Consumer,
        health: ClientHealth,
        counts: Mapping[str, int],
    ) -> Writer:
        is_exact = membership.delivery is Delivery.EXACTLY_ONCE
        id_ = f"headrace/{membership.group}/{membership.member}" if is_exact else ""
        settings = {
            **self._options.producer(
                transactional_id=id_,
                batch_bytes=min(self._limits.values(), default=_DEFAULT_LIMIT_BYTES),
            ),
            "error_cb": health.on_error,
            "logger": client_log,
        }
        create = partial(create_client, lambda: Producer(settings), self._options.address)
        writing = self._writing(create())
        if is_exact:
            return ExactlyOnceProducer(writing, consumer, counts, create)
        return AtLeastOnceProducer(writing, consumer, counts)
