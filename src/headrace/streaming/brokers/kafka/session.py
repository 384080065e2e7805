"""Kafka consumer session with manual offset commits, and its producer.

The client's own `poll` cannot be interrupted, so a wait is split into parts that grow with the
elapsed time: `wake` takes effect within a quarter of the time waited so far, or 2 ms. A part costs
about 30 us of CPU time: 1 % of a core while no records arrive.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core import FailedPreconditionError, HeadraceError, UnavailableError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced
from headrace.streaming.brokers.kafka.assignment import UnassignedPartitions
from headrace.streaming.brokers.kafka.client import (
    AUTO_OFFSET_RESET,
    JOINING,
    MAX_POLL_EXCEEDED,
    PARTITION_EOF,
    SHOULD_WAIT,
    TIMED_OUT,
    ClientHealth,
    error_of,
    partition_of,
    records_of,
    within,
)
from headrace.streaming.brokers.kafka.offsets import Assigning, PartitionOffsets
from headrace.streaming.brokers.kafka.producers import Writer
from headrace.streaming.records import NewRecord, PartitionLag, Record, TopicPartition

_log = logging.getLogger(__name__)
_MAX_BUFFERED: Final = 200
_NO_ERRORS: Final = frozenset({type(None)})


class KafkaSource:
    """Consumer of a member. It must be polled even while no record can be taken.

    `expired`: records that retention deleted before they were read.
    """

    def __init__(
        self,
        consumer: Consumer,
        positions: PartitionOffsets,
        assigning: Assigning,
        health: ClientHealth,
    ) -> None:
        self._consumer = consumer
        self._assigning = assigning
        self._positions = positions
        self._health = health
        self._paused: set[TopicPartition] = set()
        self._is_held = False
        self._buffered: deque[Record] = deque()
        self.expired = 0

    @property
    def unread(self) -> Collection[TopicPartition]:
        """Partitions that are not read now."""
        return list(self._positions) if self._is_held else self._paused

    def take(self, max_records: int, part_s: float) -> list[Record]:
        """Return at most `max_records` records, after at most `part_s` seconds."""
        if self._buffered:
            records: list[Record] = []
            rest: deque[Record] = deque()
            for record in self._buffered:
                is_next = len(records) < max_records and record.topic_partition not in self._paused
                (records if is_next else rest).append(record)
            self._buffered = rest
            if records:
                return records
        if self._is_held and not self._buffered:
            self._hold(is_held=False)
        return self._polled(max_records, part_s)

    def buffer(self) -> None:
        """Poll the consumer, and buffer the records for the next `take`."""
        if len(self._buffered) >= _MAX_BUFFERED and not self._is_held:
            self._hold(is_held=True)
        self._buffered += self._polled(1, 0)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Return no records of these partitions."""
        fresh = [
            partition
            for partition in partitions
            if partition in self._positions and partition not in self._paused
        ]
        self._paused.update(fresh)
        if fresh and not self._is_held:
            self._consumer.pause([KafkaPartition(*partition) for partition in fresh])

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Return records of these partitions again."""
        again = [partition for partition in partitions if partition in self._paused]
        self._paused.difference_update(again)
        if again and not self._is_held:
            self._consumer.resume([KafkaPartition(*partition) for partition in again])

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Read these partitions from now on."""
        if self._is_held:
            self._consumer.pause([KafkaPartition(*partition) for partition in partitions])

    def drop(self, partitions: Sequence[TopicPartition]) -> None:
        """Stop reading these partitions."""
        removed = set(partitions)
        self._buffered = deque(
            record for record in self._buffered if record.topic_partition not in removed
        )
        self._paused -= removed

    def _polled(self, max_records: int, part_s: float) -> list[Record]:
        try:
            first = self._consumer.poll(part_s)
            if first is None:
                return []
            messages = [first]
            if max_records > 1:
                messages += self._consumer.consume(max_records - 1, 0)
        except KafkaException as error:
            self._health.fail_at("read", error_of(error))
            return []
        records = self._records(messages)
        if records:
            self._health.on_response()
        return records

    def _records(self, messages: Sequence[Message]) -> list[Record]:
        """Return records, without those of partitions that were revoked meanwhile."""
        errors = [message.error() for message in messages]
        if not _NO_ERRORS.issuperset(map(type, errors)):  # an error is not comparable with None
            for error, message in zip(errors, messages, strict=True):
                if error is not None:
                    self._read_failed(error, message)
            messages = [message for message in messages if message.error() is None]
        topics = [message.topic() for message in messages]
        partitions = [message.partition() for message in messages]
        count = len(messages)
        if count and partitions.count(partitions[0]) == count and topics.count(topics[0]) == count:
            return self._run(messages, partition_of(topics[0], partitions[0]))
        records: list[Record] = []
        first = 0
        for key, run in groupby(zip(topics, partitions, strict=True)):
            end = first + sum(1 for _ in run)
            records += self._run(messages[first:end], partition_of(*key))
            first = end
        return records

    def _run(self, messages: Sequence[Message], partition: TopicPartition) -> list[Record]:
        """Return the records of one partition; none if it was revoked meanwhile."""
        if partition not in self._positions:
            return []
        records = records_of(messages, partition)
        self._positions.delivered(records[0], records[-1].offset + 1)
        return records

    def _read_failed(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == PARTITION_EOF:
            offset = message.offset()
            assert offset is not None
            self._positions.reached_end(partition_of(message.topic(), message.partition()), offset)
        elif code == AUTO_OFFSET_RESET:
            self._skip_expired(partition_of(message.topic(), message.partition()))
        elif error.fatal():
            self._health.on_error(error)
        elif code not in SHOULD_WAIT and code != MAX_POLL_EXCEEDED and not error.retriable():
            topic = message.topic()
            self._health.fail_at(f"read topic '{topic}'" if topic else "read", error)

    def _skip_expired(self, partition: TopicPartition) -> None:
        """Continue at the first available record: the next one does not exist."""
        if partition not in self._positions:
            return
        topic, number = partition
        operation = f"read the first offset of partition {number} of topic '{topic}'"
        try:
            offsets = self._consumer.get_watermark_offsets(KafkaPartition(*partition), timeout=5.0)
            if offsets is None:
                raise KafkaException(KafkaError(TIMED_OUT))  # noqa: TRY301  # as other calls do
            skipped = self._positions.skip(partition, offsets[0])
            self._assigning.move(self._consumer, partition, self._positions.following)
            if self._paused:
                self._consumer.pause([KafkaPartition(*paused) for paused in self._paused])
        except KafkaException as error:
            self._health.fail_at(operation, error_of(error))
            return
        self.expired += skipped
        _log.warning(
            "retention deleted %d unread records of %s, partition %d; reading on at offset %d",
            skipped,
            topic,
            number,
            offsets[0],
        )

    def _hold(self, *, is_held: bool) -> None:
        """Pause fetching of all partitions, or resume those that are not paused."""
        self._is_held = is_held
        partitions = [
            KafkaPartition(*partition)
            for partition in self._positions
            if partition not in self._paused
        ]
        if partitions:
            (self._consumer.pause if is_held else self._consumer.resume)(partitions)


_FIRST_PART_S: Final = 0.002
_MAX_PART_S: Final = 0.02
_PART_RATIO: Final = 0.25
_HANDOVER_S: Final = 10.0
_CLOSE_S: Final = 12.0
"""Until a coordinator that ended has a successor, with which the member leaves the group."""
STALLED_AFTER_S: Final = 20.0
"""Seconds after which a session ends if one of its partitions has records and returns none."""
_CHECK_EVERY_S: Final = 1.0
_COORDINATOR_S: Final = 15.0
"""Shortest time without a membership after which the client is replaced: a coordinator that ends is
replaced after about 10 s, and keeps the instance id of a client that joined late and was closed."""
_REBALANCE_S: Final = 30.0
"""Longest time, at least, that a rebalance may wait for the other members."""
_REPORT_AFTER_S: Final = 5.0


class KafkaSession:
    """Session on Kafka; see `ConsumerSession`.

    Args:
        assigning: Looks up start offsets and assigns partitions.
        end_offsets: Returns the ends of the readable records, as far as known; does not wait.
        check_topic: Raises NotFoundError if a topic does not exist.
        unassigned: Search for partitions of the group that no member has.
    """

    def __init__(
        self,
        membership: Membership,
        listener: Rebalanced,
        assigning: Assigning,
        *,
        end_offsets: Callable[[Sequence[TopicPartition]], Mapping[TopicPartition, int]],
        check_topic: Callable[[str], None],
        unassigned: UnassignedPartitions | None = None,
        health: ClientHealth,
        clock: Clock,
    ) -> None:
        self._membership = membership
        self._listener = listener
        self._assigning = assigning
        self._end_offsets = end_offsets
        self._has_joined = False
        self._member_at = self._check_at = clock.monotonic()
        """When the client was last a member; the start until it is one."""
        self._check_topic = check_topic
        self._unassigned = unassigned
        self._health = health
        self._clock = clock
        self._positions = PartitionOffsets()
        self._woken = threading.Event()
        self._is_rebalancing = False
        self._is_closed = False
        self._consumer: Consumer
        self._source: KafkaSource
        self._writer: Writer

    def start(self, consumer: Consumer, writer: Writer) -> None:
        """Join the group; the session owns both clients from now on."""
        self._consumer = consumer
        self._source = KafkaSource(consumer, self._positions, self._assigning, self._health)
        self._writer = writer
        consumer.subscribe(
            list(self._membership.topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    @property
    def problem(self) -> str:
        """Why no records are read or written; see `ConsumerSession`."""
        if self._is_closed:
            return ""
        problem = self._health.problem or self._writer.problem
        away_s = self._away_s
        return problem or (self._not_joined(away_s) if away_s >= _REPORT_AFTER_S else "")

    @property
    def is_member(self) -> bool:
        """Whether it is a member; see `ConsumerSession`. A rebalance is no interruption."""
        return self._has_joined and self._away_s < _REPORT_AFTER_S

    @property
    def _away_s(self) -> float:
        """How long it was no member at the last check: a process that is stopped checks nothing."""
        return self._check_at - _CHECK_EVERY_S - self._member_at

    @property
    def expired(self) -> int:
        """Records that retention deleted; see `ConsumerSession`."""
        return self._source.expired

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return available records; see `ConsumerSession`."""
        self._check_open()
        started = now = self._clock.monotonic()
        until = started + timeout_s
        while True:
            part_s = max(_FIRST_PART_S, min((now - started) * _PART_RATIO, _MAX_PART_S))
            part_s = max(min(part_s, until - now), 0.0)
            if self._woken.is_set():
                part_s = 0.0
            records = (
                self._source.take(max_records, part_s) if max_records > 0 else self._wait(part_s)
            )
            self._writer.serve()
            if now >= self._check_at:
                # After a long iteration, or if the process was stopped, nothing is known yet.
                self._check_progress(now, is_late=now > self._check_at + _REPORT_AFTER_S)
                self._check_at = now + _CHECK_EVERY_S
            self._check_open()
            now = self._clock.monotonic()
            if records or now >= until or self._woken.is_set():
                self._woken.clear()
                return records

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Pause partitions; see `ConsumerSession`."""
        if not self._is_closed:
            self._source.pause(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Resume partitions; see `ConsumerSession`."""
        if not self._is_closed:
            self._source.resume(partitions)

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Write records and commit offsets; see `ConsumerSession`."""
        self._check_open()
        if not (records or offsets):
            return
        try:
            unassigned = [partition for partition in offsets if partition not in self._positions]
            if unassigned:
                topic, number = unassigned[0]
                message = (
                    f"partition {topic}/{number} is no longer assigned to member "
                    f"'{self._membership.member}'"
                )
                raise UnavailableError(message)
            for topic in {record.topic for record in records}:
                self._check_topic(topic)
            self._writer.produce(records, offsets)
            self._positions.commit(offsets)
        except HeadraceError as error:
            self._health.fail(error)
            raise

    def flush(self, timeout_s: float) -> bool:
        """Wait for acknowledgements and commits; see `ConsumerSession`."""
        self._check_open()
        try:
            serve = None if self._is_rebalancing else self._source.buffer
            return self._writer.flush(timeout_s, serve)
        except HeadraceError as error:
            self._health.fail(error)
            return False

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """Return the lag, from fetched watermarks and requested end offsets; see `ConsumerSession`.

        A client with full queues fetches nothing, for hours if the model is slow; then only the
        requested end offsets are current, which leave out records of open transactions.
        """
        self._check_open()
        now_s = self._clock.now()
        ends = self._end_offsets(list(self._positions))
        lags = {}
        for partition in self._positions:
            try:
                _, high = self._consumer.get_watermark_offsets(
                    KafkaPartition(*partition), cached=True
                )
            except KafkaException:  # the client has no watermarks yet
                high = -1
            following = max(high, ends.get(partition, -1))
            lags[partition] = self._positions.lag(partition, following, now_s)
        return lags

    def wake(self) -> None:
        """Make `poll` return; safe to call from any thread."""
        self._woken.set()

    def close(self) -> None:
        """Leave the group; see `ConsumerSession`. Idempotent.

        A static member stays in the group until its session times out, so that it may rejoin. The
        client waits for a coordinator without end; after `_CLOSE_S` it goes on in its thread.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._health.fatal_error = FailedPreconditionError("this session is closed; join again")
        self._writer.close()
        del self._writer  # its producer's threads would run until garbage collection
        try:
            within(_CLOSE_S, self._consumer.close)
        except TimeoutError:
            _log.warning("the group was not left: its coordinator is away")

    def on_commit(self, error: KafkaError | None, partitions: Sequence[KafkaPartition]) -> None:
        """Handle the result of a commit, within the consumer's `poll`."""
        if error is None:
            self._health.on_response()
        if not self._is_closed:
            self._writer.on_commit(error, partitions)

    def _check_progress(self, now: float, *, is_late: bool) -> None:
        """End the session if its client is no member for long, or if a partition returns nothing.

        The client may wait for an answer that never comes, without an error. A new client does not.
        """
        health, timeout_s = self._health, self._membership.session_timeout_s
        held = list(self._positions)
        is_joining = health.join_state in JOINING
        limit_s = max(_REBALANCE_S, 3 * timeout_s) if is_joining else max(_COORDINATOR_S, timeout_s)
        self._has_joined = self._has_joined or health.is_member
        # A member keeps its partitions while others join.
        if health.is_member or health.problem or is_late or (is_joining and held):
            self._member_at = now
        elif now - self._member_at > limit_s:
            health.fail(UnavailableError(self._not_joined(now - self._member_at)))
        if self._unassigned is not None and health.is_member and not is_late:
            self._unassigned.check(self._consumer.memberid() or "")
        stalled = self._positions.stalled(
            self._end_offsets(held), held if is_late else self._source.unread, now
        )
        if stalled is not None and stalled[2] >= STALLED_AFTER_S and not health.problem:
            (topic, number), offset, still_s = stalled
            message = (
                f"Kafka at {health.address}: partition {number} of topic '{topic}' has records "
                f"from offset {offset} on, but its client has returned none for {still_s:.0f} s"
            )
            health.fail(UnavailableError(message))

    def _not_joined(self, seconds: float) -> str:
        return (
            f"Kafka at {self._health.address}: the client of member '{self._membership.member}' "
            f"has not been a member of group '{self._membership.group}' for {seconds:.0f} s, and "
            f"reports no error (state: {self._health.join_state or 'unknown'})"
        )

    def _check_open(self) -> None:
        error = self._health.fatal_error
        if error is not None:
            raise type(error)(*error.args) from error

    def _wait(self, part_s: float) -> list[Record]:
        """Poll without returning records."""
        self._source.buffer()
        self._woken.wait(part_s)
        return []

    def _on_assign(self, consumer: Consumer, changed: list[KafkaPartition]) -> None:
        partitions = [partition_of(moved.topic, moved.partition) for moved in changed]
        if not partitions or self._is_closed:
            return
        self._is_rebalancing = self._has_joined = True
        if self._unassigned is not None:
            self._unassigned.watch()
        self._health.join_state = "steady"  # until the next statistics
        until = self._assigning.due()
        try:
            start_offsets = self._listener.on_assigned(partitions) or {}
            starts, fresh = self._assigning.starts(consumer, partitions, start_offsets, until=until)
            self._positions.hold(starts)
            self._assigning.take(consumer, starts)
            self._source.on_assigned(partitions)
            if fresh:
                self._writer.begin_at(fresh)
        except HeadraceError as error:
            self._health.fail(error)
        finally:
            self._is_rebalancing = False

    def _on_revoke(self, consumer: Consumer, changed: list[KafkaPartition]) -> None:
        partitions = [partition_of(moved.topic, moved.partition) for moved in changed]
        if not partitions or self._is_closed:
            return
        if self._unassigned is not None:
            self._unassigned.watch()
        self._is_rebalancing = True
        try:
            self._source.drop(partitions)
            self._listener.on_revoked(partitions)
            self._writer.flush(_HANDOVER_S, None)
        except HeadraceError as error:
            self._health.fail(error)
        finally:
            self._is_rebalancing = False
            self._forget(consumer, partitions)

    def _on_lost(self, consumer: Consumer, changed: list[KafkaPartition]) -> None:
        partitions = [partition_of(moved.topic, moved.partition) for moved in changed]
        if not partitions or self._is_closed:
            return
        self._source.drop(partitions)
        self._listener.on_lost(partitions)
        self._forget(consumer, partitions)

    def _forget(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._writer.forget(partitions)
        self._positions.drop(partitions)
        self._source.drop(partitions)
        self._assigning.leave(consumer, partitions)
