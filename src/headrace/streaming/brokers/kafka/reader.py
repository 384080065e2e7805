"""Kafka access outside a group: records by offset and time, topics and group offsets."""

import logging
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
)
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not all are listed
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConsumerGroupDescription,
    OffsetSpec,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.clock import Clock
from headrace.streaming.brokers.kafka.client import (
    AUTHENTICATION,
    AUTO_OFFSET_RESET,
    CONNECTION,
    PARTITION_EOF,
    TIMED_OUT,
    error_of,
    failure,
    milliseconds,
    partition_of,
    partitions_of,
    records_of,
    within,
)
from headrace.streaming.brokers.kafka.url import KafkaOptions
from headrace.streaming.records import Record, TopicPartition

if TYPE_CHECKING:
    from concurrent.futures import Future

_log = logging.getLogger(__name__)
REQUEST_TIMEOUT_S: Final = 8.0
_PART_S: Final = 1.0
_MIN_TIMEOUT_S: Final = 0.1
_EVENTS: Final = 20
_ENDS: Final = frozenset({PARTITION_EOF, AUTO_OFFSET_RESET})
_BATCH_SIZE: Final = 500
_T = TypeVar("_T")


class KafkaReader:
    """Reads records and metadata. Safe to use from several threads, one at a time."""

    def __init__(self, options: KafkaOptions, clock: Clock) -> None:
        self._address = options.address
        self._clock = clock
        self._connection_error: KafkaError | None = None
        self._partition_counts: dict[str, int] = {}
        self._lock = threading.Lock()
        settings = {**options.reader(), "error_cb": self._on_error, "logger": _log}
        self._consumer: Consumer | None = create_client(lambda: Consumer(settings), options.address)

    def check_topic(self, topic: str) -> None:
        """Raise NotFoundError if a topic does not exist; existing topics are looked up once."""
        if topic not in self._partition_counts:
            self.partitions(topic)

    def partitions(self, topic: str) -> int:
        """Return the current number of partitions of a topic.

        Raises:
            NotFoundError: The topic does not exist. It is not created.
        """
        with self._open() as consumer:
            return self._count(consumer, topic)

    def ends(self, topic: str) -> dict[TopicPartition, tuple[int, int]]:
        """Return first and next offsets; see `Broker`."""
        with self._open() as consumer:
            count = self._count(consumer, topic)
            until = self._clock.monotonic() + REQUEST_TIMEOUT_S
            return {
                TopicPartition(topic, number): self._watermarks(consumer, topic, number, until)
                for number in range(count)
            }

    def offsets_at(self, topic: str, at_s: float) -> dict[TopicPartition, int]:
        """Return offsets by time; see `Broker`."""
        at_ms = milliseconds(at_s)
        with self._open() as consumer:
            queried = [
                KafkaPartition(topic, number, at_ms)
                for number in range(self._count(consumer, topic))
            ]
            results = self._call(
                f"find offsets by time in topic '{topic}'",
                lambda: consumer.offsets_for_times(queried, timeout=REQUEST_TIMEOUT_S),
            )
            return {
                TopicPartition(topic, result.partition): result.offset
                if result.offset >= 0
                else self._watermarks(consumer, topic, result.partition)[1]
                for result in results
            }

    def read(
        self, topic: str, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on; see `Broker`."""
        with self._open() as consumer:
            self._check(consumer, topic, after)
            until = self._clock.monotonic() + REQUEST_TIMEOUT_S
            starts = {
                # Retention may have deleted the record.
                partition: max(offset, self._watermarks(consumer, *partition, until)[0])
                for partition, offset in after.items()
            }
            consumer.assign(partitions_of(starts))
            try:
                return self._collect(consumer, topic, set(after), max_records)
            finally:
                consumer.unassign()

    def check_offsets(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Raise NotFoundError or InvalidArgumentError for offsets that cannot be."""
        with self._open() as consumer:
            for topic in {partition.topic for partition in offsets}:
                own = {p: offset for p, offset in offsets.items() if p.topic == topic}
                self._check(consumer, topic, own)

    def close(self) -> None:
        """Close the consumer. Idempotent."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    def _collect(
        self, consumer: Consumer, topic: str, left: set[TopicPartition], max_records: int
    ) -> list[Record]:
        """Return records until the end of each partition."""
        records: list[Record] = []
        until = self._clock.monotonic() + REQUEST_TIMEOUT_S
        while left and len(records) < max_records:
            for message in consumer.consume(min(max_records - len(records), _BATCH_SIZE), 0.01):
                partition = partition_of(message.topic(), message.partition())
                error = message.error()
                if error is None:
                    records += records_of([message], partition)
                    until = self._clock.monotonic() + REQUEST_TIMEOUT_S
                elif error.code() not in _ENDS:
                    raise self._failure(error, f"read topic '{topic}'")
                else:
                    left.discard(partition)
            if self._clock.monotonic() >= until:
                error = KafkaError(TIMED_OUT)
                raise self._failure(error, f"read topic '{topic}'")
        return records

    def _check(self, consumer: Consumer, topic: str, offsets: Mapping[TopicPartition, int]) -> None:
        count = self._count(consumer, topic)
        for partition, offset in offsets.items():
            if partition.topic != topic or not 0 <= partition.partition < count:
                message = f"topic '{topic}' has {count} partitions, but not {partition}"
                raise InvalidArgumentError(message)
            if offset < 0:
                raise InvalidArgumentError(f"an offset of topic '{topic}' cannot be {offset}")

    def _count(self, consumer: Consumer, topic: str) -> int:
        metadata = self._metadata(consumer, topic)
        topic_metadata = metadata.topics.get(topic)
        error = (
            KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            if topic_metadata is None
            else topic_metadata.error
        )
        if error is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self._partition_counts.pop(topic, None)
            message = (
                f"topic '{topic}' does not exist in Kafka at {self._address}; create it, or check "
                "its spelling"
            )
            raise NotFoundError(message)
        if error is not None and error.code() != KafkaError.LEADER_NOT_AVAILABLE:
            raise self._failure(error, f"read metadata of topic '{topic}'")
        self._partition_counts[topic] = len(topic_metadata.partitions)
        return self._partition_counts[topic]

    def _metadata(self, consumer: Consumer, topic: str) -> Any:  # noqa: ANN401  # has no type
        """Fetch metadata in short requests: after a refusal, the client waits its whole timeout."""
        until = self._clock.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                return consumer.list_topics(topic, timeout=_PART_S)
            except KafkaException as error:
                consumer.poll(0)
                if self._is_refused or self._clock.monotonic() >= until:
                    operation = f"read metadata of topic '{topic}'"
                    raise self._failure(error_of(error), operation) from error

    def _watermarks(
        self, consumer: Consumer, topic: str, number: int, until: float = math.inf
    ) -> tuple[int, int]:
        """Return the ends of one partition, by a deadline that several partitions share."""
        timeout_s = min(max(until - self._clock.monotonic(), _MIN_TIMEOUT_S), REQUEST_TIMEOUT_S)
        return self._call(
            f"read offsets of partition {number} of topic '{topic}'",
            lambda: consumer.get_watermark_offsets(
                KafkaPartition(topic, number), timeout=timeout_s
            ),
        )

    def _call(self, operation: str, ask: Callable[[], _T]) -> _T:
        try:
            answer = ask()
        except KafkaException as error:
            raise self._failure(error_of(error), operation) from error
        if answer is None:
            raise UnavailableError(f"Kafka at {self._address}: cannot {operation}: no answer")
        return answer

    def _failure(self, error: KafkaError, operation: str) -> Exception:
        """Return the exception, with the connection error that the client reports separately."""
        consumer = self._consumer
        for _ in range(_EVENTS):
            if consumer is None or self._connection_error is not None:
                break
            consumer.poll(0.01)
        connection_error, self._connection_error = self._connection_error, None
        if connection_error is None:
            return failure(error, operation=operation, address=self._address)
        if connection_error.code() == AUTHENTICATION:
            error = connection_error
        return failure(
            error, operation=operation, address=self._address, reason=connection_error.str()
        )

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in CONNECTION and not self._is_refused:
            self._connection_error = error

    @property
    def _is_refused(self) -> bool:
        error = self._connection_error
        return error is not None and error.code() == AUTHENTICATION

    @contextmanager
    def _open(self) -> Iterator[Consumer]:
        with self._lock:
            if self._consumer is None:
                raise FailedPreconditionError("this broker is closed; open it again")
            yield self._consumer


def create_client(create: Callable[[], _T], address: str) -> _T:
    """Return a new client.

    Raises:
        InvalidArgumentError: An option is invalid.
    """
    try:
        return create()
    except (KafkaException, TypeError, ValueError) as error:
        reason = error_of(error).str()
        raise InvalidArgumentError(f"invalid option for Kafka at {address}: {reason}") from error


_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # has no types
_SESSION_TIMEOUT: Final = "consumer.session.timeout.ms"
_HEARTBEAT: Final = "consumer.heartbeat.interval.ms"
_ONLY_NEEDED: Final = "enable.sparse.connections"
"""Whether the client connects only to brokers that it sends requests to. With it, a request for a
broker that is down makes it connect again at once after each failure: two threads occupy a core
until the timeout, also on the machine of the broker that starts. Without it, there are pauses."""
_GROUP_TIMEOUT_S: Final = 3600.0
"""Timeout of requests to the coordinator of a group, the longest that there is. If it passed before
a coordinator is there, the client would abort the process when one is (librdkafka 3663, 4605)."""
_CONFIG_TIMEOUT_S: Final = 2.0
"""Timeout of requests for configurations, which need the cluster's controller."""
_CONFIG_AGAIN_S: Final = 5.0
"""How long others are not requested after one timed out: a worker joins, which needs none."""
_POLL_EVERY_S: Final = 1.0
_STEP_S: Final = 0.05
_CLOSE_S: Final = 1.0
_DEFAULT_REPLICATION: Final = -1
_GROUP_IS_ACTIVE: Final = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
    }
)


class KafkaAdmin:
    """Admin client. It lives as long as the broker: a collected client drops its requests."""

    def __init__(self, options: KafkaOptions, clock: Clock) -> None:
        self._address = options.address
        self._clock = clock
        self._ask_config_at = 0.0
        self._settings = options.client()
        self._client = self._describer = self._create()
        self._description: Future[ConsumerGroupDescription] | None = None

    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str]) -> None:
        """Create a topic with the cluster's default replication."""
        new = NewTopic(topic, partitions, _DEFAULT_REPLICATION, config=dict(config))
        future = self._client.create_topics([new], request_timeout=REQUEST_TIMEOUT_S)[topic]
        self._result(future, f"create topic '{topic}'", {KafkaError.TOPIC_ALREADY_EXISTS})

    def topic_limit(self, topic: str) -> int | None:
        """Return the `max.message.bytes` of a topic; None if it is unknown."""
        try:
            return self._config(ResourceType.TOPIC, topic).get("max.message.bytes")
        except UnavailableError as error:
            _log.info("a topic's limit is unknown", extra={"topic": topic, "error": str(error)})
            return None

    def session_timeout_ms(self, group: str) -> int | None:
        """Return the timeout of a group's `consumer` protocol; None if it is unknown.

        Raises:
            UnavailableError: The cluster does not answer.
        """
        return self._config(ResourceType.GROUP, group).get(_SESSION_TIMEOUT)

    def set_session_timeout(self, group: str, timeout_ms: int) -> None:
        """Set the timeout of a group's `consumer` protocol, and a shorter heartbeat interval.

        Raises:
            InvalidArgumentError: The cluster does not permit the timeout.
            UnavailableError: The cluster does not answer.
        """
        config = self._config(ResourceType.GROUP, group)
        beat_ms = min(config.get(_HEARTBEAT, timeout_ms), max(timeout_ms // 3, 1))
        settings = {_SESSION_TIMEOUT: timeout_ms, _HEARTBEAT: beat_ms}
        if settings.items() <= config.items():
            return
        entries = [
            ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET)
            for name, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
        operation = f"set the session timeout of group '{group}' to {timeout_ms / 1000:g} s"
        (future,) = self._client.incremental_alter_configs(
            [resource], request_timeout=_CONFIG_TIMEOUT_S
        ).values()
        self._result(future, operation)

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Return committed offsets; partitions without one are left out.

        Raises:
            UnavailableError: A transaction that may change them stayed open until the timeout.
        """
        queried = [KafkaPartition(*partition) for partition in partitions]
        with self._outside(group, f"read offsets of group '{group}'") as consumer:
            # With `read_committed` the client requests stable offsets (KIP-447).
            results = consumer.committed(queried, timeout=REQUEST_TIMEOUT_S)
            error = next((result.error for result in results if result.error is not None), None)
            if error is not None:
                raise KafkaException(error)
        return {
            TopicPartition(result.topic, result.partition): result.offset
            for result in results
            if result.offset >= 0
        }

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set the offsets of a group without running members."""
        outcomes: list[KafkaError | None] = []

        def report(error: KafkaError | None, partitions: Sequence[KafkaPartition]) -> None:
            outcomes.extend([error, *(partition.error for partition in partitions)])

        until = self._clock.monotonic() + REQUEST_TIMEOUT_S
        operation = f"set offsets of group '{group}'"
        with self._outside(group, operation, on_commit=report) as consumer:
            consumer.commit(offsets=partitions_of(offsets), asynchronous=True)
            while not outcomes:
                if self._clock.monotonic() >= until:
                    raise KafkaException(KafkaError(TIMED_OUT))
                consumer.poll(_STEP_S)
            error = next((outcome for outcome in outcomes if outcome is not None), None)
            if error is None:
                return
            if error.code() not in _GROUP_IS_ACTIVE:
                raise KafkaException(error)
        message = (
            f"a member of group '{group}' runs, or ended so recently that it may come "
            "back; stop the stream, and wait for its session_timeout_s"
        )
        raise FailedPreconditionError(message)

    @contextmanager
    def _outside(self, group: str, operation: str, **more: object) -> Iterator[Consumer]:
        """Provide a client that asks a group's coordinator, but does not join the group.

        One for each request: the admin client does not find a coordinator again that has started
        again, and aborts the process when it finds one after a timeout (librdkafka 3663, 4605).
        """
        settings = {**self._settings, "group.id": group, "enable.auto.commit": False, **more}
        consumer = create_client(lambda: Consumer(settings), self._address)
        try:
            yield consumer
        except KafkaException as raised:
            error = error_of(raised)
            reason = ""
            if error.code() == TIMED_OUT:
                reason = "no coordinator answers, or an open transaction covers the offsets"
            raise failure(
                error, operation=operation, address=self._address, reason=reason
            ) from raised
        finally:
            with suppress(TimeoutError):  # it waits for a commit without an answer
                within(_CLOSE_S, consumer.close)

    def request_ends(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, "Future[Any]"]:
        """Request the ends of readable records without waiting for the answers."""
        futures = self._client.list_offsets(
            {KafkaPartition(*partition): _LATEST for partition in partitions},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=REQUEST_TIMEOUT_S,
        )
        return {
            TopicPartition(partition.topic, partition.partition): future
            for partition, future in futures.items()
        }

    def request_group(self, group: str) -> "Future[ConsumerGroupDescription]":
        """Request the description of a group without waiting for the answer.

        A request replaces one that has no answer yet, with its client: a client does not find a
        coordinator again that has started again.
        """
        if self._description is None or not self._description.done():
            self._describer = self._create()
        (self._description,) = self._describer.describe_consumer_groups(
            [group], request_timeout=_GROUP_TIMEOUT_S
        ).values()
        return self._description

    def _create(self) -> AdminClient:
        settings = self._settings | {_ONLY_NEEDED: False}
        return create_client(lambda: AdminClient(settings, logger=_log), self._address)

    def _config(self, kind: ResourceType, name: str) -> dict[str, int]:
        """Return the numbers in the configuration of a topic or group.

        It is empty if the cluster does not support or permit the request.

        Raises:
            UnavailableError: The cluster does not answer, or did not a moment ago.
        """
        resource = ConfigResource(kind, name)
        operation = f"read the configuration of '{name}'"
        if self._clock.monotonic() < self._ask_config_at:
            error = KafkaError(KafkaError.REQUEST_TIMED_OUT)
            raise failure(error, operation=operation, address=self._address)
        try:
            future = self._client.describe_configs([resource], request_timeout=_CONFIG_TIMEOUT_S)[
                resource
            ]
            config = self._result(future, operation)
        except UnavailableError:
            self._ask_config_at = self._clock.monotonic() + _CONFIG_AGAIN_S
            raise
        except HeadraceError as error:
            _log.info("a configuration is unknown", extra={"resource": name, "error": str(error)})
            return {}
        return {
            key: int(entry.value)
            for key, entry in config.items()
            if entry.value is not None and entry.value.isdecimal()
        }

    def _result(self, future: "Future[Any]", operation: str, expected: Collection[int] = ()) -> Any:  # noqa: ANN401  # the type depends on the call
        """Return the result of a request; None after an error with an expected code."""
        try:
            return future.result(REQUEST_TIMEOUT_S + 1)
        except TimeoutError:
            error = KafkaError(KafkaError.REQUEST_TIMED_OUT)
        except KafkaException as raised:
            error = error_of(raised)
        if error.code() in expected:
            return None
        raise failure(error, operation=operation, address=self._address)


class EndOffsets:
    """Ends of the readable records of partitions, requested every second without waiting."""

    def __init__(self, admin: KafkaAdmin, clock: Clock) -> None:
        self._admin = admin
        self._clock = clock
        self._offsets: dict[TopicPartition, int] = {}
        self._pending: dict[TopicPartition, Future[Any]] = {}
        self._request_at = 0.0

    def __call__(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the newest end offsets that were received."""
        for partition, future in list(self._pending.items()):
            if future.done():
                del self._pending[partition]
                self._offsets.pop(partition, None)
                if future.exception() is None:
                    self._offsets[partition] = future.result().offset
        now = self._clock.monotonic()
        if partitions and not self._pending and now >= self._request_at:
            self._request_at = now + _POLL_EVERY_S
            self._pending = self._admin.request_ends(partitions)
        return self._offsets
