"""Offsets of a member's Kafka partitions: start offsets, committed offsets and lag."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, StartPosition
from headrace.streaming.brokers.checks import check_start_offsets
from headrace.streaming.brokers.kafka.client import (
    SHOULD_WAIT,
    TIMED_OUT,
    error_of,
    failure,
    milliseconds,
    partitions_of,
)
from headrace.streaming.records import PartitionLag, Record, TopicPartition

_MAX_LAG_SAMPLES: Final = 10_000


class _Position:
    """Offsets of one partition: the next to read, and the committed one."""

    __slots__ = ("checked", "committed", "end", "lag_samples", "moved_at", "read")

    def __init__(self, start: int) -> None:
        self.read = start
        self.committed = start
        self.end = start
        self.checked = -1
        """Next offset at the last check for a stall."""
        self.moved_at = 0.0
        """Monotonic time of the last check that found progress, or nothing to read."""
        self.lag_samples: deque[tuple[int, float]] = deque()


class PartitionOffsets:
    """Offsets of assigned partitions, with a sample of record timestamps for the lag."""

    def __init__(self) -> None:
        self._held: dict[TopicPartition, _Position] = {}

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._held

    def __iter__(self) -> Iterator[TopicPartition]:
        return iter(self._held)

    def hold(self, starts: Mapping[TopicPartition, int]) -> None:
        """Add assigned partitions with their start offsets."""
        for partition, start in starts.items():
            self._held[partition] = _Position(start)

    def drop(self, partitions: Sequence[TopicPartition]) -> None:
        """Remove partitions."""
        for partition in partitions:
            self._held.pop(partition, None)

    def delivered(self, first: Record, following: int) -> None:
        """Record delivered records of a partition: the first, and the offset after the last."""
        position = self._held[first.topic_partition]
        position.read = following
        if len(position.lag_samples) < _MAX_LAG_SAMPLES:
            position.lag_samples.append((first.offset, first.timestamp_s))

    def reached_end(self, partition: TopicPartition, offset: int) -> None:
        """Record that only transaction markers precede this offset after the delivered records."""
        if partition in self._held:
            self._held[partition].end = offset

    @property
    def following(self) -> dict[TopicPartition, int]:
        """The next offset to read of each partition."""
        return {partition: position.read for partition, position in self._held.items()}

    def skip(self, partition: TopicPartition, following: int) -> int:
        """Continue at this offset; return the number of skipped offsets."""
        position = self._held[partition]
        skipped = max(following - position.read, 0)
        position.read = position.committed = following
        position.lag_samples.clear()
        return skipped

    def stalled(
        self, ends: Mapping[TopicPartition, int], paused: Collection[TopicPartition], now: float
    ) -> tuple[TopicPartition, int, float] | None:
        """Return a partition that has records and returns none, its offset, and for how long.

        Call it regularly; it returns the partition that has stalled longest, if there is one.

        Args:
            ends: The end of the readable records of each partition, as far as known.
        """
        stalled = None
        for partition, position in self._held.items():
            offset = max(position.read, position.end)
            if (
                offset != position.checked
                or partition in paused
                or ends.get(partition, 0) <= offset
            ):
                position.checked, position.moved_at = offset, now
            elif stalled is None or now - position.moved_at > stalled[2]:
                stalled = partition, offset, now - position.moved_at
        return stalled

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Record committed offsets."""
        for partition, offset in offsets.items():
            position = self._held.get(partition)
            if position is None:
                continue
            position.committed = offset
            lag_samples = position.lag_samples
            while len(lag_samples) > 1 and lag_samples[1][0] <= offset:
                lag_samples.popleft()
            if offset >= position.read:
                lag_samples.clear()

    def lag(self, partition: TopicPartition, following: int, now_s: float) -> PartitionLag:
        """Return the lag of a partition.

        Args:
            following: The next offset to be written, as far as known.
        """
        position = self._held[partition]
        committed = position.committed
        if committed >= position.read:
            committed = max(committed, position.end)
        records = max(following, position.end, position.read) - committed
        if records <= 0:
            return PartitionLag(records=0, seconds=0.0)
        if not position.lag_samples:
            return PartitionLag(records=records, seconds=None)
        return PartitionLag(records=records, seconds=max(now_s - position.lag_samples[0][1], 0.0))


_REQUEST_TIMEOUT_S: Final = 5.0
_MIN_TIMEOUT_S: Final = 0.1
_RETRY_PAUSE_S: Final = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigning:
    """Assignment of partitions with explicit start offsets.

    The client itself would not store the offset of a new group that starts at the end, and would
    lose it in a crash. Each committed offset carries the number of partitions that its topic had
    when the group first read it: partitions beyond it were added later, and are read from their
    beginning.
    """

    membership: Membership
    is_cooperative: bool
    timeout_s: float
    """Time for all lookups; they run within the client's `poll`."""
    address: str
    clock: Clock
    wait: Callable[[float], None] = time.sleep
    counts: dict[str, int] = field(default_factory=dict)
    """Numbers of partitions to commit with offsets, by topic."""

    def due(self) -> float:
        """Return the monotonic deadline for lookups of partitions that are assigned now."""
        return self.clock.monotonic() + self.timeout_s

    def starts(
        self,
        consumer: Consumer,
        partitions: Sequence[TopicPartition],
        listener_offsets: Mapping[TopicPartition, int],
        *,
        until: float,
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Return the offsets to read from, and those of them to commit for a new group.

        Args:
            listener_offsets: Offsets from the rebalance listener; they precede the committed ones.
            until: Result of `due` when the partitions were assigned.

        Raises:
            InvalidArgumentError: `listener_offsets` names a partition that is not among these.
            HeadraceError: The cluster does not answer.
        """
        check_start_offsets(listener_offsets, partitions)
        queried = [
            KafkaPartition(*partition)
            for partition in partitions
            if partition not in listener_offsets
        ]
        # With `read_committed` the client requests stable offsets (KIP-447): it waits for an open
        # transaction, whose offsets may change the result.
        committed = (
            self._retry(lambda s: _committed(consumer, queried, s), until) if queried else []
        )
        starts = dict(listener_offsets)
        uncommitted = []
        for result in committed:
            partition = TopicPartition(result.topic, result.partition)
            if result.offset >= 0:
                starts[partition] = result.offset
                self.counts.setdefault(result.topic, _count_in(result))
            else:
                uncommitted.append(partition)
        if not uncommitted:
            return starts, {}
        is_earliest = (
            self.membership.start is StartPosition.EARLIEST and self.membership.start_s is None
        )
        added = uncommitted
        if not is_earliest:
            for topic in {partition.topic for partition in uncommitted}:
                self.counts[topic] = self._retry(partial(_first_count, consumer, topic), until)
            added = [
                partition
                for partition in uncommitted
                if partition.partition >= self.counts[partition.topic]
            ]
        defaults = {partition: self._ends(consumer, partition, until)[0] for partition in added}
        if len(added) < len(uncommitted):
            fresh = [partition for partition in uncommitted if partition not in defaults]
            defaults |= self._beginnings(consumer, fresh, until)
        return starts | defaults, defaults

    def take(self, consumer: Consumer, starts: Mapping[TopicPartition, int]) -> None:
        """Start to read partitions at these offsets."""
        partitions = partitions_of(dict(starts))
        if self.is_cooperative:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)

    def move(
        self,
        consumer: Consumer,
        partition: TopicPartition,
        following: Mapping[TopicPartition, int],
    ) -> None:
        """Continue to read a partition at another offset, after the client has stopped reading it.

        Args:
            following: The next offset of each assigned partition.
        """
        if self.is_cooperative:
            self.leave(consumer, [partition])
            self.take(consumer, {partition: following[partition]})
        else:
            self.take(consumer, following)

    def leave(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """Stop reading partitions."""
        if self.is_cooperative:
            consumer.incremental_unassign([KafkaPartition(*partition) for partition in partitions])
        else:
            consumer.unassign()

    def _beginnings(
        self, consumer: Consumer, partitions: Sequence[TopicPartition], until: float
    ) -> dict[TopicPartition, int]:
        """Return the offsets at which a new group starts that does not read from the beginning."""
        start_s = self.membership.start_s
        if start_s is None:
            return {p: self._ends(consumer, p, until)[1] for p in partitions}
        at_ms = milliseconds(start_s)
        queried = [KafkaPartition(*partition, at_ms) for partition in partitions]
        results = self._retry(lambda s: consumer.offsets_for_times(queried, timeout=s), until)
        starts = {
            TopicPartition(result.topic, result.partition): result.offset for result in results
        }
        for partition, offset in starts.items():
            if offset < 0:  # no record is that new
                starts[partition] = self._ends(consumer, partition, until)[1]
        return starts

    def _ends(self, consumer: Consumer, partition: TopicPartition, until: float) -> tuple[int, int]:
        kafka_partition = KafkaPartition(*partition)
        return self._retry(
            lambda s: consumer.get_watermark_offsets(kafka_partition, timeout=s), until
        )

    def _retry(self, query: Callable[[float], _T | None], until: float) -> _T:
        """Call `query` until it succeeds or the deadline passes, and return its result.

        A server may become available, or a transaction end. `query` receives its timeout; some of
        the client's calls return None when it expires.
        """
        while True:
            left_s = until - self.clock.monotonic()
            try:
                answer = query(min(max(left_s, _MIN_TIMEOUT_S), _REQUEST_TIMEOUT_S))
                if answer is not None:
                    return answer
                failed = KafkaError(TIMED_OUT)
            except KafkaException as error:
                failed = error_of(error)
            if failed.code() not in SHOULD_WAIT or self.clock.monotonic() >= until:
                operation = f"read the offsets of group '{self.membership.group}'"
                raise failure(failed, operation=operation, address=self.address)
            self.wait(_RETRY_PAUSE_S)


def _committed(
    consumer: Consumer, queried: list[KafkaPartition], timeout_s: float
) -> list[KafkaPartition]:
    """Return the committed offsets; raise if one of them is unknown."""
    results = consumer.committed(queried, timeout=timeout_s)
    for result in results:
        if result.error is not None:
            # The result has no offset, as if the group had never read the partition.
            raise KafkaException(result.error)
    return results


def _count_in(committed: KafkaPartition) -> int:
    """Return the number of partitions in a committed offset; 0 if another program committed it."""
    text = committed.metadata or ""
    return int(text) if text.isascii() and text.isdecimal() else 0


def _first_count(consumer: Consumer, topic: str, timeout_s: float) -> int:
    """Return how many partitions a topic had when the group first read it, which may be now."""
    metadata = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    queried = [KafkaPartition(topic, number) for number in metadata.partitions]
    results = consumer.committed(queried, timeout=timeout_s)
    counts = [_count_in(result) for result in results if result.offset >= 0]
    # An offset in an open transaction is unknown, but one of another partition suffices.
    errors = [result.error for result in results if result.error is not None]
    if errors and not counts:
        raise KafkaException(errors[0])
    return min(counts, default=len(queried))
