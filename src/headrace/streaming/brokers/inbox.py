"""Delivery buffer and session base for brokers that deliver and acknowledge single records.

Such a broker (Redis, NATS, Pulsar) redelivers records that were not acknowledged in time, so older
records follow newer ones. A stream commits one position per partition, which is safe only if
delivered records ascend: an older record is buffered until all newer ones before it are
acknowledged.
"""

import heapq
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import ClassVar, Final, Generic, TypeVar

from headrace.core import (
    Clock,
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    UnavailableError,
)
from headrace.streaming.broker import Delivery, Membership, Rebalanced
from headrace.streaming.brokers.checks import check_records, check_start_offsets
from headrace.streaming.records import NewRecord, PartitionLag, Record, TopicPartition

T = TypeVar("T")
Held = tuple[Record, T]
"""A record, and the token that acknowledges it."""


class PartitionBuffer(Generic[T]):
    """Records of one partition: waiting and delivered ones, without duplicates, in order."""

    def __init__(self) -> None:
        self.is_paused = False
        self._order: list[int] = []
        self.waiting: dict[int, Held[T]] = {}
        """Received records that were not delivered."""
        self._delivered: dict[int, Held[T]] = {}

    @property
    def held(self) -> list[Held[T]]:
        """All records of this member."""
        return [*self._delivered.values(), *self.waiting.values()]

    def offer(self, record: Record, token: T) -> None:
        """Add a received record; a redelivered one only replaces its token."""
        offset = record.offset
        for held in (self._delivered, self.waiting):
            if offset in held:
                held[offset] = (held[offset][0], token)
                return
        heapq.heappush(self._order, offset)
        self.waiting[offset] = (record, token)

    def can_deliver(self) -> bool:
        """Return whether a record waits that is newer than all delivered ones."""
        if self.is_paused or not self._order:
            return False
        return not self._delivered or self._order[0] > next(reversed(self._delivered))

    def take(self, max_records: int) -> list[Record]:
        """Deliver up to `max_records` records."""
        records: list[Record] = []
        while len(records) < max_records and self.can_deliver():
            offset = heapq.heappop(self._order)
            held = self.waiting.pop(offset)
            self._delivered[offset] = held
            records.append(held[0])
        return records

    def acknowledge(self, upper: int) -> list[Held[T]]:
        """Remove and return delivered records below an offset."""
        acknowledged = []
        for offset in list(self._delivered):
            if offset >= upper:
                break
            acknowledged.append(self._delivered.pop(offset))
        return acknowledged


class Inbox(Generic[T]):
    """Buffers of all partitions of a member. Safe to use from any thread."""

    def __init__(self, partitions: Sequence[TopicPartition]) -> None:
        self._changed = threading.Condition()
        self._buffers: dict[TopicPartition, PartitionBuffer[T]] = {
            partition: PartitionBuffer() for partition in partitions
        }
        self._rotation = deque(partitions)
        self._is_woken = False
        self.is_closed = False
        self._demand = 0

    @property
    def partitions(self) -> Sequence[TopicPartition]:
        """All partitions."""
        with self._changed:
            return tuple(self._buffers)

    def add(self, partition: TopicPartition) -> None:
        """Add a partition."""
        with self._changed:
            self._buffers[partition] = PartitionBuffer()
            self._rotation.append(partition)

    def offer(self, records: Iterable[tuple[Record, T]]) -> None:
        """Add records received from the broker."""
        with self._changed:
            for record, token in records:
                self._buffers[record.topic_partition].offer(record, token)
            self._changed.notify_all()

    def poll(self, max_records: int, timeout_s: float) -> list[Record] | None:
        """Deliver records; wait for the first one. Empty if woken, None after the timeout."""
        with self._changed:
            self._want(max_records)
            arrived = self._changed.wait_for(
                lambda: (
                    self._is_woken
                    or (
                        max_records > 0
                        and any(buffer.can_deliver() for buffer in self._buffers.values())
                    )
                ),
                max(timeout_s, 0),
            )
            records: list[Record] = []
            for _ in range(len(self._rotation)):
                if len(records) >= max_records:
                    break
                self._rotation.rotate(-1)
                records += self._buffers[self._rotation[-1]].take(max_records - len(records))
            self._is_woken = False
            self._want(0)
            return records if arrived else None

    def close(self) -> None:
        """End the threads that read."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def wait_for_demand(
        self, timeout_s: float, among: Collection[TopicPartition] | None = None
    ) -> tuple[int, list[TopicPartition]]:
        """Wait until a `poll` waits for records; return how many, and of which partitions.

        Args:
            among: Partitions that the caller reads; None for all.

        Returns:
            0 and no partition after the timeout, or if the inbox is closed.
        """

        def wanted() -> list[TopicPartition]:
            if self.is_closed or not self._demand:
                return []
            return [p for p in self.open_partitions() if among is None or p in among]

        with self._changed:
            partitions = self._changed.wait_for(wanted, timeout_s)
            return (self._demand if partitions else 0), partitions

    def wake(self) -> None:
        """Make `poll`, or the next one, return."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def pause(self, partitions: Iterable[TopicPartition], *, is_paused: bool) -> None:
        """Pause or resume the delivery of these partitions."""
        with self._changed:
            for partition in partitions:
                self._buffers[partition].is_paused = is_paused
            self._changed.notify_all()

    def acknowledge(self, partition: TopicPartition, upper: int) -> list[Held[T]]:
        """Acknowledge delivered records; see `PartitionBuffer.acknowledge`."""
        with self._changed:
            acknowledged = self._buffers[partition].acknowledge(upper)
            self._changed.notify_all()
            return acknowledged

    def held(self) -> list[Held[T]]:
        """Return all records of this member, of all partitions."""
        with self._changed:
            return [held for buffer in self._buffers.values() for held in buffer.held]

    def waiting(self) -> int:
        """Return the number of received records that were not delivered."""
        with self._changed:
            return sum(len(buffer.waiting) for buffer in self._buffers.values())

    def open_partitions(self) -> list[TopicPartition]:
        """Return partitions to read: not paused, and without records that must wait."""
        with self._changed:
            return [
                partition
                for partition, buffer in self._buffers.items()
                if not (buffer.is_paused or (buffer.waiting and not buffer.can_deliver()))
            ]

    def _want(self, max_records: int) -> None:
        self._demand = max(
            max_records - sum(len(buffer.waiting) for buffer in self._buffers.values()), 0
        )
        if self._demand:
            self._changed.notify_all()


RETRY_PAUSE_S: Final = 0.1
_DEMAND_S: Final = 0.5
_LAG_EVERY_S: Final = 1.0


class ReadingThread(Generic[T]):
    """Thread that reads records into an inbox while a `poll` waits for them, until it is closed.

    Args:
        read: Reads at most so many records of these partitions; called again after an error.
        among: See `Inbox.wait_for_demand`.
    """

    def __init__(
        self,
        inbox: Inbox[T],
        read: Callable[[int, Sequence[TopicPartition]], None],
        *,
        among: Collection[TopicPartition] | None = None,
    ) -> None:
        self.error: HeadraceError | None = None
        """The last error of `read`, until the session clears it."""
        self._inbox = inbox
        self._read = read
        self._among = among
        self._thread = threading.Thread(target=self._run, name="stream-reader", daemon=True)

    def start(self) -> None:
        """Start to read, unless the thread runs."""
        if self._thread.ident is None:
            self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the end of the thread after its inbox was closed."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._inbox.is_closed:
            max_records, partitions = self._inbox.wait_for_demand(_DEMAND_S, self._among)
            if not max_records:
                continue
            try:
                self._read(max_records, partitions)
            except HeadraceError as error:
                self.error = error
                self._inbox.wake()
                time.sleep(RETRY_PAUSE_S)


class SharedSession(ABC, Generic[T]):
    """Session on topics whose records are shared among members; a broker implements the hooks."""

    expired = 0
    is_member = True
    _has_partitions: ClassVar[bool] = False
    """Whether topics may have several partitions, which all members read."""

    def __init__(
        self,
        membership: Membership,
        listener: Rebalanced,
        clock: Clock,
        *,
        heartbeat_s: float,
        partitions: Iterable[TopicPartition] | None = None,
    ) -> None:
        topics = dict.fromkeys(membership.topics)
        self._membership = membership
        self._listener = listener
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        """Maximum seconds between heartbeats while `poll` is called."""
        self._inbox: Inbox[T] = Inbox(
            tuple(partitions or (TopicPartition(topic, 0) for topic in topics))
        )
        self._is_exact = membership.delivery is Delivery.EXACTLY_ONCE
        self._unsent: deque[tuple[Sequence[NewRecord], Mapping[TopicPartition, list[T]]]] = deque()
        self._lag: dict[TopicPartition, PartitionLag] = {}
        self._problem = ""
        self._was_disconnected = False
        """Whether a response was lost since the broker's session last cleared this."""
        self._fatal_error: HeadraceError | None = None
        self._start_offsets: Mapping[TopicPartition, int] | None = None
        self._has_begun = self._is_closed = False
        self._heartbeat_at = self._lag_at = self._retry_at = 0.0

    @property
    def problem(self) -> str:
        """Why no records are read or written; see `ConsumerSession`."""
        return self._connection_problem() or self._problem

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return available records; see `ConsumerSession`."""
        deadline = self._clock.monotonic() + timeout_s
        while True:
            self._check_open()
            self._maintain(max_records)
            # Unwritten answers are buffered; no more records are taken until they are written.
            limit = 0 if self._unsent else max_records
            self._want(limit)
            now = self._clock.monotonic()
            wait_s = min(deadline - now, max(self._heartbeat_at - now, 0))
            if self.problem:
                wait_s = min(wait_s, RETRY_PAUSE_S)
            records = self._inbox.poll(limit, wait_s)
            if records is not None:
                return records
            if self._clock.monotonic() >= deadline:
                return []

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Pause the delivery of partitions; see `ConsumerSession`."""
        self._inbox.pause(partitions, is_paused=True)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Resume the delivery of partitions; see `ConsumerSession`."""
        self._inbox.pause(partitions, is_paused=False)

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Write records and acknowledge their input; see `ConsumerSession`.

        With at-least-once delivery, records that an unavailable broker did not take are sent later.
        """
        self._check_open()
        try:
            check_records(records, has_partitions=self._has_partitions)
            if unassigned := offsets.keys() - set(self._inbox.partitions):
                topic, number = min(unassigned)
                who = f"member '{self._membership.member}' of group '{self._membership.group}'"
                raise ConflictError(f"partition {topic}/{number} is not assigned to {who}")
            tokens = {
                partition: [token for _, token in held]
                for partition, upper in offsets.items()
                if (held := self._inbox.acknowledge(partition, upper))
            }
            if records or tokens:
                self._unsent.append((records, tokens))
                self._send()
                self._problem = ""
        except UnavailableError as error:
            if self._is_exact:
                self._fatal_error = error
                raise
            self._problem = str(error)
        except HeadraceError as error:
            self._fatal_error = error
            raise

    def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has acknowledged all records; see `ConsumerSession`."""
        self._check_open()
        deadline = self._clock.monotonic() + timeout_s
        while True:
            if self._unsent:
                self._maintain(0)
            if not self._unsent:
                with suppress(UnavailableError):
                    self._confirm()
                    return True
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                return False
            self._inbox.poll(0, min(left_s, RETRY_PAUSE_S))

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """Return the lag measured within the last second; see `ConsumerSession`."""
        self._check_open()
        return self._lag

    def wake(self) -> None:
        """Make `poll` return; safe to call from any thread."""
        self._inbox.wake()

    def close(self) -> None:
        """Leave the group; see `ConsumerSession`. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if not self._connection_problem():
                if self._fatal_error is None:
                    self._send()
                self._leave()
        except HeadraceError:
            pass  # the broker redelivers unacknowledged records
        finally:
            self._fatal_error = FailedPreconditionError("this session is closed; join again")
            self._disconnect()

    def _check_open(self) -> None:
        if self._fatal_error is not None:
            raise type(self._fatal_error)(*self._fatal_error.args) from self._fatal_error

    def _maintain(self, max_records: int) -> None:
        """Start reading, send answers and heartbeats, and measure the lag, each if due."""
        now = self._clock.monotonic()
        if self._connection_problem() or (self._problem and now < self._retry_at):
            return
        try:
            if not self._has_begun:
                self._begin()
            self._send()
            is_due = now >= self._heartbeat_at
            self._heartbeat(max_records, is_due=is_due)
            if is_due:
                self._heartbeat_at = now + self._heartbeat_s
            if now >= self._lag_at:
                self._update_lag()
                self._lag_at = now + _LAG_EVERY_S
            self._problem = ""
        except UnavailableError as error:
            self._was_disconnected = True
            self._problem = str(error)
            self._retry_at = now + RETRY_PAUSE_S
        except HeadraceError as error:
            self._fatal_error = error
            raise

    def _begin(self) -> None:
        if self._start_offsets is None:
            self._start_offsets = self._listener.on_assigned(self._inbox.partitions) or {}
            check_start_offsets(self._start_offsets, self._inbox.partitions)
        self._start(self._start_offsets)
        self._has_begun = True

    def _send(self) -> None:
        while self._unsent:
            self._write(*self._unsent[0])
            self._unsent.popleft()

    def _connection_problem(self) -> str:
        """Return why the connection is down; empty if it is up or unknown."""
        return ""

    @abstractmethod
    def _start(self, start_offsets: Mapping[TopicPartition, int]) -> None:
        """Start to read, at these offsets instead of the group's. Called again after a failure."""

    def _want(self, max_records: int) -> None:
        """Request up to `max_records` records; called before each wait."""

    @abstractmethod
    def _heartbeat(self, max_records: int, *, is_due: bool) -> None:
        """Send heartbeats if they are due; called in each iteration."""

    @abstractmethod
    def _update_lag(self) -> None:
        """Measure the lag and store it in `_lag`."""

    @abstractmethod
    def _write(
        self, records: Sequence[NewRecord], tokens: Mapping[TopicPartition, Sequence[T]]
    ) -> None:
        """Write records and acknowledge their input; called again with both after a failure."""

    def _confirm(self) -> None:
        """Wait until acknowledgements are confirmed."""

    def _leave(self) -> None:
        """Leave the group; called while the broker is available."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close the connections of this session."""
