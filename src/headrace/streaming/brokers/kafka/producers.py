"""Kafka producers: at least once, and exactly once with transactions.

At least once: offsets are committed after their answers are acknowledged. librdkafka has one
request in flight for a partition of an idempotent producer, unless it holds fewer than five
records. While that request is in flight, the client's thread spins on queued records that have
waited for `linger.ms`, which costs more CPU time than writing them. So records wait in this module
until the previous ones are acknowledged.

Exactly once: answers and offsets go in one transaction. Each member has its own transactional id,
so a member that rejoins with its name aborts its open transaction and fences the other process of
that name (KIP-98); the group's generation, sent with the offsets, fences a member that lost its
partitions (KIP-447).
"""

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core import HeadraceError
from headrace.streaming.brokers.kafka.client import (
    DROPPED,
    NO_OFFSET,
    REMOVED,
    SHOULD_WAIT,
    TIMED_OUT,
    Writing,
    error_of,
    failure,
    partitions_of,
    within,
)
from headrace.streaming.records import NewRecord, TopicPartition

COMMIT_EVERY_S: Final = 0.05
IN_FLIGHT: Final = 5
"""Fewer unacknowledged records do not delay the client's next request."""
MAX_QUEUED_S: Final = 0.1
"""Maximum seconds that records wait: one slow partition must not stop the others."""
_SMALL_BATCH: Final = 64
"""Batches with fewer records are sent at once; others wait `linger.ms` for a full request."""
_RETRY_AFTER_S: Final = 0.2
_STEP_S: Final = 0.005
_REPORT_AFTER_S: Final = 5.0
_HANDOVER_S: Final = 10.0


class _Batch:
    """Offsets to commit after records in flight, and the first error of these."""

    __slots__ = ("error", "offsets", "report", "topic")

    def __init__(self, offsets: dict[TopicPartition, int], report: "_Report") -> None:
        self.offsets = offsets
        self.report = weakref.ref(report)
        """Dead when no record is in flight: the client references it until all are reported."""
        self.error: KafkaError | None = None
        self.topic = ""


class _Report:
    """Delivery report callback of a batch.

    The client calls it for errors only. A call for each record would cost a quarter of writing it.
    """

    __slots__ = ("__weakref__", "batch")

    batch: _Batch

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self.batch.error is None:
            self.batch.error = error
            self.batch.topic = message.topic() or ""


class AtLeastOnceProducer:
    """Producer that commits offsets after records are acknowledged.

    Args:
        counts: Numbers of partitions to commit with offsets, by topic.
    """

    def __init__(self, writing: Writing, consumer: Consumer, counts: Mapping[str, int]) -> None:
        self._writing = writing
        self._clock = writing.clock
        self._consumer = consumer
        self._counts = counts
        self._batches: deque[_Batch] = deque()
        self._queued: list[NewRecord] = []
        self._queued_offsets: dict[TopicPartition, int] = {}
        self._queued_at = 0.0
        self._acknowledged: dict[TopicPartition, int] = {}
        self._committing: dict[TopicPartition, int] = {}
        self._commit_at = 0.0
        self._progress_at = 0.0
        self._commit_error: HeadraceError | None = None

    @property
    def problem(self) -> str:
        """Why records are not acknowledged yet; empty if the delay is normal."""
        if not (self._batches or self._committing):
            return ""
        late_s = self._clock.monotonic() - self._progress_at
        if late_s < _REPORT_AFTER_S:
            return ""
        address, description = self._writing.address, "records" if self._batches else "offsets"
        return f"Kafka at {address} has not confirmed any {description} for {late_s:.0f} s"

    def begin_at(self, starts: Mapping[TopicPartition, int]) -> None:
        """Commit the start offsets of a new group, so that they survive a crash."""
        self._acknowledged.update(starts)

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Queue records; their offsets are committed when they are acknowledged."""
        now = self._clock.monotonic()
        if not self._batches:
            self._progress_at = now
        if not (self._queued or self._queued_offsets):
            self._queued_at = now
        self._queued += records
        self._queued_offsets.update(offsets)
        self.serve()

    def serve(self) -> None:
        """Send queued records unless others are in flight; collect reports; commit at intervals."""
        self._collect_reports()
        if (
            len(self._writing.producer) < IN_FLIGHT
            or self._clock.monotonic() >= self._queued_at + MAX_QUEUED_S
        ):
            self._put()
        if (
            self._acknowledged
            and not self._committing
            and self._clock.monotonic() >= self._commit_at
        ):
            self._commit()

    def flush(self, timeout_s: float, serve_consumer: Callable[[], None] | None) -> bool:
        """Flush as `ConsumerSession.flush`; `serve_consumer` is None in consumer callbacks."""
        until = self._clock.monotonic() + timeout_s
        self._put()
        if serve_consumer is None:
            return self._flush_blocking(timeout_s)
        while self._batches or self._acknowledged or self._committing:
            if self._acknowledged and not self._committing:
                self._commit()
            left_s = until - self._clock.monotonic()
            if left_s <= 0:
                return False
            if self._batches:
                self._writing.serve(min(_STEP_S, left_s))
            serve_consumer()
            self._collect_reports()
        return True

    def forget(self, partitions: Sequence[TopicPartition]) -> None:
        """Do not commit offsets of these partitions; their answers may still be written."""
        unsafe = (self._queued_offsets, *(batch.offsets for batch in self._batches))
        for offsets in (self._acknowledged, self._committing, *unsafe):
            for partition in partitions:
                offsets.pop(partition, None)

    def on_commit(self, error: KafkaError | None, partitions: Sequence[KafkaPartition]) -> None:
        """Handle the result of a commit; `_flush_blocking` handles its own results."""
        committed = {
            TopicPartition(result.topic, result.partition): result.offset for result in partitions
        }
        if not self._committing or any(
            committed.get(partition) != offset for partition, offset in self._committing.items()
        ):
            return
        committing, self._committing = self._committing, {}
        first_error = error or next(
            (partition.error for partition in partitions if partition.error is not None), None
        )
        self._on_committed(committing, first_error)

    def close(self) -> None:
        """Commit nothing more; records in flight may still arrive."""
        self._queued, self._queued_offsets = [], {}
        self._writing.producer.purge(in_queue=True, in_flight=False, blocking=False)
        with suppress(HeadraceError):
            self._writing.serve()

    def _put(self) -> None:
        """Pass queued records to the client."""
        if not (self._queued or self._queued_offsets):
            return
        report = _Report()
        report.batch = _Batch(self._queued_offsets, report)
        self._batches.append(report.batch)
        records, self._queued, self._queued_offsets = self._queued, [], {}
        self._writing.put(records, report)
        del report
        if len(records) < _SMALL_BATCH:
            self._writing.send_now()
        self._collect_reports()

    def _collect_reports(self) -> None:
        self._writing.serve()
        batches = self._batches
        while batches and batches[0].report() is None:
            batch = batches.popleft()
            self._progress_at = self._clock.monotonic()
            if batch.error is not None:
                raise self._writing.failed(batch.error, None, batch.topic)
            self._acknowledged.update(batch.offsets)
        if self._commit_error is not None:
            raise self._commit_error

    def _commit(self) -> None:
        now = self._clock.monotonic()
        self._commit_at = now + COMMIT_EVERY_S
        self._progress_at = now
        self._committing, self._acknowledged = self._acknowledged, {}
        try:
            partitions = partitions_of(self._committing, self._counts)
            self._consumer.commit(offsets=partitions, asynchronous=True)
        except KafkaException as error:
            committing, self._committing = self._committing, {}
            self._on_committed(committing, error_of(error))

    def _on_committed(self, offsets: dict[TopicPartition, int], error: KafkaError | None) -> None:
        now = self._clock.monotonic()
        self._progress_at = now
        if error is None or error.code() == NO_OFFSET:
            return
        if error.code() in REMOVED:
            return  # these partitions were lost; a rebalance callback follows
        if error.code() in SHOULD_WAIT or error.retriable():
            self._acknowledged = offsets | self._acknowledged
            self._commit_at = now + _RETRY_AFTER_S
            return
        self._commit_error = failure(
            error, operation="commit offsets", address=self._writing.address
        )

    def _flush_blocking(self, timeout_s: float) -> bool:
        """Flush within a rebalance, where the consumer reports only blocking commits."""
        until = self._clock.monotonic() + min(timeout_s, _HANDOVER_S)
        self._collect_reports()
        while self._batches and self._clock.monotonic() < until:
            self._writing.serve(_STEP_S)
            self._collect_reports()
        offsets = self._committing | self._acknowledged
        if offsets:
            self._committing, self._acknowledged = {}, {}
            try:
                partitions = partitions_of(offsets, self._counts)
                results = self._consumer.commit(offsets=partitions, asynchronous=False)
                errors = [result.error for result in results if result.error is not None]
            except KafkaException as error:
                errors = [error_of(error)]
            self._on_committed(offsets, errors[0] if errors else None)
        return not (self._batches or self._acknowledged)


_TRANSACTION_TIMEOUT_S: Final = 15.0
_TRANSACTION_STEP_S: Final = 5.0
_MIN_STEP_S: Final = 0.1
_JOIN_S: Final = 15.0
_ABORT_S: Final = 2.0
_RETRY_PAUSE_S: Final = 0.05
_GENERATION_S: Final = 3.0
"""How long a client may not know its new generation."""
_SEND_OFFSETS_S: Final = 7.0
"""How long a call may take that sends offsets. It ignores its timeout while the group's coordinator
is away, and may never return (librdkafka issues 5456 and 5511). Less than a transaction lasts."""
_REPEATED: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        TIMED_OUT,
        KafkaError._STATE,  # noqa: SLF001  # of librdkafka itself, and public
    }
)
"""Errors of a transaction that is aborted and repeated; the last two are those of its records."""


class ExactlyOnceProducer:
    """Producer with the methods of `AtLeastOnceProducer`; each delivery is one transaction.

    Args:
        create: Returns another producer, for one whose call does not return.

    Raises:
        HeadraceError: The cluster does not support transactions.
    """

    def __init__(
        self,
        writing: Writing,
        consumer: Consumer,
        counts: Mapping[str, int],
        create: Callable[[], Producer],
    ) -> None:
        self._writing = writing
        self._create = create
        self._clock = writing.clock
        self._producer = writing.producer
        self._consumer = consumer
        self._counts = counts
        self._failed: tuple[KafkaError, str] | None = None
        until = self._clock.monotonic() + _JOIN_S
        self._retry(self._producer.init_transactions, "begin transactions", until=until)

    problem = ""

    def begin_at(self, starts: Mapping[TopicPartition, int]) -> None:
        """Commit start offsets in a transaction, so that they precede the next one."""
        self.produce([], starts)

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Write records and commit offsets in one transaction, before returning.

        The transaction is aborted and repeated while a leader or the group's coordinator moves, and
        until the client knows the member's new generation: another session would rebalance the
        group, which changes the generation of all members.
        """
        operation = "commit a transaction"
        until = self._clock.monotonic() + _TRANSACTION_TIMEOUT_S
        member_id = self._consumer.memberid()
        while True:
            self._begin(operation)
            refused = None
            try:
                self._writing.put(records, self._report)
                if offsets:
                    send = partial(
                        self._producer.send_offsets_to_transaction,
                        partitions_of(offsets, self._counts),
                        self._consumer.consumer_group_metadata(),
                    )
                    left_s = max(until - self._clock.monotonic(), _MIN_STEP_S)
                    bounded = partial(within, min(left_s, _SEND_OFFSETS_S), send)
                    refused = self._retry(bounded, operation, until=until)
                if refused is None:
                    commit = self._producer.commit_transaction
                    refused = self._retry(commit, operation, until=until)
                if refused is None:
                    return
                if refused.code() == KafkaError.ILLEGAL_GENERATION:
                    until = min(until, self._clock.monotonic() + _GENERATION_S)
                if self._failed is not None or self._consumer.memberid() != member_id:
                    raise self._error(refused, operation)
            except TimeoutError:
                self._replace(until)
                continue
            except HeadraceError:
                self._abort()
                raise
            if not self._abort():
                raise self._error(refused, operation)
            self._writing.serve(_RETRY_AFTER_S)

    def serve(self) -> None:
        """Process reports; nothing is in flight between transactions."""
        self._writing.serve()

    def flush(
        self,
        timeout_s: float,  # noqa: ARG002  # transactions are complete
        serve_consumer: Callable[[], None] | None,  # noqa: ARG002  # as above
    ) -> bool:
        """Return True: nothing is in flight."""
        return True

    def forget(self, partitions: Sequence[TopicPartition]) -> None:
        """Do nothing: nothing is in flight."""

    def on_commit(self, error: KafkaError | None, partitions: Sequence[KafkaPartition]) -> None:
        """Do nothing: transactions commit the offsets."""

    def close(self) -> None:
        """Process reports; nothing is in flight."""
        with suppress(HeadraceError):
            self._writing.serve()

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failed is None and error.code() not in DROPPED:
            self._failed = error, message.topic() or ""

    def _begin(self, operation: str) -> None:
        self._failed = None
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise self._error(error_of(error), operation) from error

    def _abort(self) -> bool:
        """Abort the transaction, so that consumers need not wait for its timeout."""
        with suppress(KafkaException):  # else the next producer or the timeout does
            self._producer.abort_transaction(_ABORT_S)
            return True
        return False

    def _replace(self, until: float) -> None:
        """Replace the producer; the new one aborts the transaction of the old one."""
        self._producer = self._writing.producer = self._create()
        self._retry(self._producer.init_transactions, "begin transactions", until=until)

    def _retry(
        self, call: Callable[[float], None], operation: str, *, until: float
    ) -> KafkaError | None:
        """Call `call` with its timeout until it succeeds or the deadline passes.

        Before the deadline, an error after which the transaction is repeated is returned.
        """
        while True:
            left_s = until - self._clock.monotonic()
            try:
                call(min(max(left_s, _MIN_STEP_S), _TRANSACTION_STEP_S))
            except KafkaException as error:
                kafka_error = error_of(error)
                is_late = self._clock.monotonic() >= until
                is_call = kafka_error.retriable() and not kafka_error.txn_requires_abort()
                if kafka_error.code() in _REPEATED and not (is_call or is_late):
                    return kafka_error
                if not kafka_error.retriable() or is_late:
                    raise self._error(kafka_error, operation) from error
                self._writing.serve(0 if kafka_error.code() == TIMED_OUT else _RETRY_PAUSE_S)
            else:
                return None

    def _error(self, error: KafkaError, operation: str) -> Exception:
        """Return the exception.

        The error of a record is more specific than the transaction's, unless the record was only
        dropped or too late because the transaction failed.
        """
        with suppress(HeadraceError):
            self._writing.serve()
        if self._failed is not None and not error.fatal():
            return self._writing.failed(self._failed[0], None, self._failed[1])
        return failure(error, operation=operation, address=self._writing.address)


Writer = AtLeastOnceProducer | ExactlyOnceProducer
"""Producer of a session."""
