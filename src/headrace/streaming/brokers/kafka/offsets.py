"""Offsets of a member's Kafka partitions: start offsets, committed offsets and lag."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core import InvalidArgumentError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, StartPosition
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

    __slots__ = ("committed", "end", "lag_samples", "read")

    def __init__(self, start: int | None) -> None:
        self.read = start
        self.committed = start
        self.end: int | None = None
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
            if lag_samples and position.read is not None and offset >= position.read:
                lag_samples.clear()

    def lag(
        self, partition: TopicPartition, following: int | None, now_s: float
    ) -> PartitionLag | None:
        """Return the lag of a partition; None if it is unknown yet.

        Args:
            following: The next offset to be written, as far as known.
        """
        position = self._held[partition]
        committed = position.committed
        if committed is None:
            return None
        if position.read is not None and committed >= position.read and position.end is not None:
            committed = max(committed, position.end)
        ends = [end for end in (following, position.end, position.read) if end is not None]
        records = max(max(ends, default=committed) - committed, 0)
        if not records:
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
    lose it in a crash.
    """

    membership: Membership
    is_cooperative: bool
    timeout_s: float
    """Time for all lookups; they run within the client's `poll`."""
    address: str
    clock: Clock
    wait: Callable[[float], None] = time.sleep

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
        unassigned = set(listener_offsets) - set(partitions)
        if unassigned:
            raise InvalidArgumentError(
                f"the listener gave an offset for {min(unassigned)}, which is not assigned"
            )
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
            else:
                uncommitted.append(partition)
        defaults = self._beginnings(consumer, uncommitted, until) if uncommitted else {}
        return starts | defaults, defaults

    def take(self, consumer: Consumer, starts: Mapping[TopicPartition, int]) -> None:
        """Start to read partitions at these offsets."""
        partitions = partitions_of(dict(starts))
        if self.is_cooperative:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)

    def leave(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """Stop reading partitions."""
        if self.is_cooperative:
            consumer.incremental_unassign([KafkaPartition(*partition) for partition in partitions])
        else:
            consumer.unassign()

    def _beginnings(
        self, consumer: Consumer, partitions: Sequence[TopicPartition], until: float
    ) -> dict[TopicPartition, int]:
        """Return the offsets at which a new group starts."""
        start_s = self.membership.start_s
        if start_s is None:
            which = 0 if self.membership.start is StartPosition.EARLIEST else 1
            return {
                partition: self._ends(consumer, partition, until)[which] for partition in partitions
            }
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
