"""Kafka client errors, conversion of records, and the health of a cluster."""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from headrace.core.clock import Clock
from headrace.streaming.broker import ReplacedError
from headrace.streaming.records import Header, NewRecord, Record, TopicPartition

_log = logging.getLogger("headrace.streaming.brokers.kafka")
# The session reports fatal errors by their meaning; the client logs each as CRITICAL too.
client_log: Final = logging.getLogger(f"{_log.name}.librdkafka")
client_log.addFilter(lambda record: not record.getMessage().startswith("FATAL"))

# ruff: noqa: SLF001  # names with an underscore are of librdkafka itself, and public
_E = KafkaError
PARTITION_EOF: Final = _E._PARTITION_EOF
AUTO_OFFSET_RESET: Final = _E._AUTO_OFFSET_RESET
NO_OFFSET: Final = _E._NO_OFFSET
TIMED_OUT: Final = _E._TIMED_OUT
ALL_BROKERS_DOWN: Final = _E._ALL_BROKERS_DOWN
MAX_POLL_EXCEEDED: Final = _E._MAX_POLL_EXCEEDED
AUTHENTICATION: Final = _E._AUTHENTICATION
DROPPED: Final = frozenset({_E._PURGE_QUEUE, _E._PURGE_INFLIGHT, _E._MSG_TIMED_OUT})
"""Errors of a record that say nothing about the cause."""
CONNECTION: Final = frozenset({_E._AUTHENTICATION, _E._SSL, _E._TRANSPORT, _E._RESOLVE})
"""Connection errors; the client itself only retries."""
REMOVED: Final = frozenset(
    {_E._ASSIGNMENT_LOST, _E.FENCED_MEMBER_EPOCH, _E.ILLEGAL_GENERATION, _E.UNKNOWN_MEMBER_ID}
)
"""The coordinator has removed the member from its group."""
_KINDS: Final[Mapping[type[HeadraceError], tuple[int, ...]]] = {
    UnavailableError: (
        _E._TRANSPORT,
        _E._ALL_BROKERS_DOWN,
        _E._RESOLVE,
        _E._SSL,
        _E._TIMED_OUT,
        _E._TIMED_OUT_QUEUE,
        _E._MSG_TIMED_OUT,
        _E._WAIT_COORD,
        _E._DESTROY,
        _E._ISR_INSUFF,
        _E.REQUEST_TIMED_OUT,
        _E.NETWORK_EXCEPTION,
        _E.BROKER_NOT_AVAILABLE,
        _E.LEADER_NOT_AVAILABLE,
        _E.NOT_LEADER_FOR_PARTITION,
        _E.NOT_ENOUGH_REPLICAS,
        _E.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        _E.COORDINATOR_LOAD_IN_PROGRESS,
        _E.COORDINATOR_NOT_AVAILABLE,
        _E.NOT_COORDINATOR,
        _E.CONCURRENT_TRANSACTIONS,
        _E.REBALANCE_IN_PROGRESS,
        _E.UNSTABLE_OFFSET_COMMIT,
        _E.INVALID_PRODUCER_ID_MAPPING,
        _E.UNRELEASED_INSTANCE_ID,
        _E.STALE_MEMBER_EPOCH,
        *REMOVED,
        _E.KAFKA_STORAGE_ERROR,
        _E.THROTTLING_QUOTA_EXCEEDED,
    ),
    UnauthenticatedError: (_E._AUTHENTICATION, _E.SASL_AUTHENTICATION_FAILED),
    PermissionDeniedError: (
        _E.TOPIC_AUTHORIZATION_FAILED,
        _E.GROUP_AUTHORIZATION_FAILED,
        _E.CLUSTER_AUTHORIZATION_FAILED,
        _E.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        _E.DELEGATION_TOKEN_AUTHORIZATION_FAILED,
    ),
    NotFoundError: (
        _E.UNKNOWN_TOPIC_OR_PART,
        _E.UNKNOWN_TOPIC_ID,
        _E._UNKNOWN_TOPIC,
        _E._UNKNOWN_PARTITION,
    ),
    ReplacedError: (_E.FENCED_INSTANCE_ID,),
    ConflictError: (
        _E._FENCED,
        _E.INVALID_PRODUCER_EPOCH,
        _E.PRODUCER_FENCED,
    ),
    InvalidArgumentError: (
        _E._INVALID_ARG,
        _E._CONFLICT,
        _E.MSG_SIZE_TOO_LARGE,
        _E.INVALID_MSG_SIZE,
        _E.RECORD_LIST_TOO_LARGE,
        _E.INVALID_CONFIG,
        _E.INVALID_PARTITIONS,
        _E.INVALID_REPLICATION_FACTOR,
        _E.INVALID_GROUP_ID,
        _E.INVALID_SESSION_TIMEOUT,
        _E.INVALID_TRANSACTION_TIMEOUT,
        _E.INVALID_TIMESTAMP,
        _E.INVALID_RECORD,
        _E.POLICY_VIOLATION,
        _E.TOPIC_EXCEPTION,
        _E.INCONSISTENT_GROUP_PROTOCOL,
    ),
    UnsupportedError: (
        _E._UNSUPPORTED_FEATURE,
        _E._NOT_IMPLEMENTED,
        _E.UNSUPPORTED_VERSION,
        _E.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        _E.UNSUPPORTED_COMPRESSION_TYPE,
    ),
}
_KIND_OF: Final = {code: kind for kind, codes in _KINDS.items() for code in codes}
_HINTS_BY_CLASS: Final[Mapping[type[HeadraceError], str]] = {
    UnauthenticatedError: "authentication failed: check sasl.username, sasl.password and "
    "sasl.mechanism",
    PermissionDeniedError: "not permitted: add an ACL to the cluster",
    ConflictError: "another process uses this member's name, or a transaction of this one timed "
    "out while it was stopped",
}
_HINTS_BY_CODE: Final[Mapping[int, str]] = {
    _E.INVALID_SESSION_TIMEOUT: "the servers accept a session_timeout_s of 6 s to 30 min unless "
    "they are configured otherwise (group.min.session.timeout.ms)",
    _E.UNSTABLE_OFFSET_COMMIT: "an open transaction covers it: it ends within its timeout "
    "(transaction.timeout.ms); retry then",
    _E.INVALID_TIMESTAMP: "the topic rejects records with that timestamp "
    "(message.timestamp.before.max.ms and message.timestamp.after.max.ms); change these, or write "
    "answers with `timestamps: now`",
    **dict.fromkeys(
        REMOVED,
        "the group's coordinator removed this member after session_timeout_s without a heartbeat",
    ),
    _E.FENCED_INSTANCE_ID: (
        "another process joined with this member's name, or this one twice in an outage"
    ),
    _E.UNRELEASED_INSTANCE_ID: "the group's coordinator waits for the end of the session of this "
    "member's previous process",
    _E.INVALID_PRODUCER_ID_MAPPING: "the cluster has forgotten this member's transactional id, "
    "which was not used for transactional.id.expiration.ms",
    _E.INCONSISTENT_GROUP_PROTOCOL: "the other members of the group use another "
    "partition.assignment.strategy or group.protocol",
}
SHOULD_WAIT: Final = frozenset(_KINDS[UnavailableError]) - {
    _E.INVALID_PRODUCER_ID_MAPPING,
    _E.UNRELEASED_INSTANCE_ID,
    *REMOVED,
}
"""Errors that are resolved by waiting, without another session."""


def error_of(error: BaseException) -> KafkaError:
    """Return the error that an exception of the client carries.

    `AdminClient` and consumers raise the same exceptions; a few calls raise without an error.
    """
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return KafkaError(_E._FAIL, str(error))


def failure(error: KafkaError, *, operation: str, address: str, reason: str = "") -> HeadraceError:
    """Return the exception for a client error.

    Args:
        doing: The failed action, such as "write to topic 't'".
        reason: The connection error, where the error itself is not specific.
    """
    code = error.code()
    if code == _E._FATAL:  # the client names the cause in the text only
        causes = (cause for cause in _KIND_OF if KafkaError(cause).str() in error.str())
        code = next(causes, code)
    kind = _KIND_OF.get(code)
    if kind is None:
        kind = UnavailableError if error.retriable() else FailedPreconditionError
    text = error.str().removeprefix("Local: ")
    because = f"{text}: {reason}" if reason and reason not in text else text
    means = _HINTS_BY_CODE.get(code) or _HINTS_BY_CLASS.get(kind)
    out = f"; {means}" if means else ""
    return kind(f"Kafka at {address}: cannot {operation}: {because} ({error.name()}){out}")


class _BrokerStatistics(msgspec.Struct):
    state: str


class _GroupStatistics(msgspec.Struct):
    join_state: str


class _Statistics(msgspec.Struct):
    """The part of the client's statistics that is used."""

    brokers: dict[str, _BrokerStatistics] = {}
    cgrp: _GroupStatistics | None = None


_statistics_of: Final = msgspec.json.Decoder(_Statistics).decode
JOINING: Final = frozenset({"wait-join", "wait-sync"})
"""States of a client that waits for the other members of its group."""
_NO_MEMBER: Final = frozenset({"", "init", "wait-metadata", *JOINING})


class ClientHealth:
    """Health of a member's clients, updated within their `poll`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.fatal_error: HeadraceError | None = None
        self.join_state = ""
        """State of the client within its group; empty if it is unknown."""
        self._is_away = False
        self._reason = ""

    @property
    def problem(self) -> str:
        """Why no records are read or written; empty if the cluster is available."""
        if not self._is_away:
            return ""
        return self._reason or f"Kafka at {self.address} does not answer"

    @property
    def is_member(self) -> bool:
        """Whether the group's coordinator has answered that the client is a member."""
        return self.join_state not in _NO_MEMBER

    def on_response(self) -> None:
        """Record that the cluster is available."""
        self._is_away = False

    def fail(self, error: HeadraceError) -> None:
        """End the member; the first error counts."""
        if self.fatal_error is None:
            self.fatal_error = error

    def fail_at(self, operation: str, error: KafkaError) -> None:
        """End the member at a client error."""
        self.fail(failure(error, operation=operation, address=self.address))

    def on_error(self, error: KafkaError) -> None:
        """Handle a client error; most are transient."""
        code = error.code()
        if error.fatal():
            self.fail_at("continue as a member", error)
        elif code in CONNECTION:
            self._reason = f"Kafka at {self.address}: {error.str()}"
            self._is_away = self._is_away or code == AUTHENTICATION
        elif code == ALL_BROKERS_DOWN:
            self._is_away = True

    def on_statistics(self, statistics: str) -> None:
        """Read the client's statistics.

        Only they show that a server is available again, and the state within the group.
        """
        current = _statistics_of(statistics)
        if current.cgrp is not None:
            self.join_state = current.cgrp.join_state
        servers = current.brokers.values()
        self._is_away = self._is_away and not any(server.state == "UP" for server in servers)


_MILLISECONDS: Final = 1000
_ANY_PARTITION: Final = -1
_MAX_FULL_S: Final = 15.0
_FULL_STEP_S: Final = 0.02
_SEND_S: Final = 0.001
"""Shortest flush of the client. It sends everything queued and need not wait for answers."""
_LAST_MS: Final = (1 << 63) - 1
_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
Report = Callable[[KafkaError | None, Message], None]


partition_of: Final = cache(TopicPartition)
"""Returns a partition: creating one for each record would cost as much as the record."""


def records_of(messages: Sequence[Message], partition: TopicPartition) -> list[Record]:
    """Convert messages of one partition, inline, as calls would cost as much as the records."""
    return [
        Record(
            topic_partition=partition,
            offset=message.offset(),  # type: ignore[arg-type]  # what was read has one
            key=message.key(),
            value=message.value(),
            headers=_headers(headers) if (headers := message.headers()) else (),
            timestamp_s=at_ms / _MILLISECONDS if (at_ms := message.timestamp()[1]) > 0 else 0.0,
        )
        for message in messages
    ]


def _headers(raw_headers: Any) -> tuple[Header, ...]:  # noqa: ANN401  # the client has no types
    return tuple([(name, value or b"") for name, value in raw_headers])


def milliseconds(at_s: float) -> int:
    """Return a time for Kafka, rounded up, so that records found by it are not older."""
    if not math.isfinite(at_s):
        raise InvalidArgumentError(f"expected a Unix time, not {at_s}")
    return min(max(math.ceil(at_s * _MILLISECONDS), 0), _LAST_MS)


def check_new(records: Sequence[NewRecord], *, limit_bytes: int) -> None:
    """Raise InvalidArgumentError for a record that Kafka would reject."""
    for record in records:
        size = len(record.value or b"") + len(record.key or b"")
        if size > limit_bytes:
            raise _too_large(record, limit_bytes)
        if record.timestamp_s is not None and not 0 <= record.timestamp_s < math.inf:
            message = f"invalid timestamp {record.timestamp_s} in a record for '{record.topic}'"
            raise InvalidArgumentError(message)


class Writing:
    """Queue of a producer; waits while it is full.

    Args:
        limits: Known limits of topics; that of a topic that refuses a record is removed.
        lingers: Whether the user set `linger.ms`: `send_now` does nothing then.
    """

    def __init__(
        self,
        producer: Producer,
        *,
        limit_bytes: int,
        address: str,
        clock: Clock,
        limits: dict[str, int],
        lingers: bool = False,
    ) -> None:
        self.producer = producer
        self.clock = clock
        self.address = address
        self._limits = limits
        self._lingers = lingers
        self._limit_bytes = limit_bytes

    def put(self, records: Sequence[NewRecord], report: Report) -> None:
        """Queue records, in order.

        Args:
            report: Called within `serve` for each record that was not written. The client releases
                it when all of them are written or reported.

        Raises:
            HeadraceError: A record cannot be written; those before it are in flight.
        """
        produce = self.producer.produce
        last_s: float | None = None
        at_ms = 0
        for record in records:
            partition, at_s = record.partition, record.timestamp_s
            if at_s != last_s:  # consecutive records often share their time
                last_s = at_s
                # 0 means now to the client, so the first millisecond of 1970 cannot be written.
                # Rounded, as a float of whole milliseconds may be a little more or less.
                at_ms = 0 if at_s is None else round(at_s * _MILLISECONDS)
                if at_s is not None and not 0 < at_ms <= _LAST_MS:
                    at_ms = min(max(at_ms, 1), _LAST_MS)
            if partition is None:
                partition = _ANY_PARTITION
            topic, value, key = record.topic, record.value, record.key
            headers = record.headers
            try:
                # By position: names cost a third of the call, unpacking a tenth.
                if headers:
                    produce(topic, value, key, partition, report, None, at_ms, list(headers))
                else:
                    produce(topic, value, key, partition, report, None, at_ms)
            except BufferError:
                self._wait_for_room()
                self.put([record], report)
            except KafkaException as error:
                raise self.failed(error_of(error), record) from error

    def serve(self, timeout_s: float = 0.0) -> None:
        """Process delivery reports.

        Raises:
            HeadraceError: The producer cannot continue; its client raises that from here.
        """
        try:
            self.producer.poll(timeout_s)
        except KafkaException as error:
            raise self.failure(error, "write") from error

    def send_now(self) -> None:
        """Send queued records without waiting for `linger.ms`; takes at most 1 ms.

        Raises:
            HeadraceError: The producer cannot continue, as in `serve`.
        """
        if not self._lingers:
            self.flush(_SEND_S)

    def flush(self, timeout_s: float) -> int:
        """Send queued records and wait for their reports; return how many are missing."""
        try:
            return self.producer.flush(timeout_s)
        except KafkaException as error:  # a fatal error of the producer
            raise self.failure(error, "write") from error

    def _wait_for_room(self) -> None:
        until = self.clock.monotonic() + _MAX_FULL_S
        before = len(self.producer)
        while len(self.producer) >= before:
            if self.clock.monotonic() >= until:
                message = (
                    f"Kafka at {self.address} has accepted no record for {_MAX_FULL_S:g} s, and "
                    f"the limit of {before} queued records is reached"
                )
                raise UnavailableError(message)
            self.serve(_FULL_STEP_S)

    def failed(self, error: KafkaError, record: NewRecord | None, topic: str = "") -> Exception:
        """Return the exception for a record that was not written."""
        name = topic if record is None else record.topic
        if error.code() in _TOO_LARGE and record is not None:
            return _too_large(record, self._limit_bytes)
        location = f"write to topic '{name}'"
        if record is not None and record.partition is not None:
            location = f"write to partition {record.partition} of topic '{name}'"
        if error.code() in _TOO_LARGE:
            self._limits.pop(name, None)  # it was changed
            location += " a record that exceeds the topic's max.message.bytes"
        return failure(error, operation=location, address=self.address)

    def failure(self, error: KafkaException, operation: str) -> HeadraceError:
        """Return the exception for an exception of the client."""
        return failure(error_of(error), operation=operation, address=self.address)


def partitions_of(
    offsets: Mapping[TopicPartition, int], counts: Mapping[str, int] = MappingProxyType({})
) -> list[KafkaPartition]:
    """Return offsets in the client's type.

    Args:
        counts: Numbers of partitions by topic, which commits carry; see `Assigning`.
    """
    return [
        KafkaPartition(topic, number, offset, str(counts.get(topic, "")))
        for (topic, number), offset in offsets.items()
    ]


def _too_large(record: NewRecord, limit_bytes: int) -> InvalidArgumentError:
    size = len(record.value or b"") + len(record.key or b"")
    size += sum(len(name) + len(value) for name, value in record.headers)
    message = (
        f"a record of {size} bytes for {record.topic} exceeds the limit of {limit_bytes} bytes, "
        "including its frame; raise ?message.max.bytes= in the URL and max.message.bytes of the "
        "topic, or store large values elsewhere and send their address"
    )
    return InvalidArgumentError(message)


def within(limit_s: float, call: Callable[..., object], *arguments: object) -> None:
    """Call `call` in another thread, which remains if it does not return.

    Raises:
        TimeoutError: It has not returned within `limit_s`.
    """
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            call(*arguments)
        except (KafkaException, RuntimeError) as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="kafka-call", daemon=True).start()
    outcome.result(limit_s)
