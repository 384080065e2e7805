"""Group member that reads an embedded log and writes to it."""

import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from headrace.core import FailedPreconditionError, HeadraceError, UnavailableError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced
from headrace.streaming.brokers.checks import check_start_offsets
from headrace.streaming.brokers.log import group as groups
from headrace.streaming.brokers.log.file import LogFile, LogFullError
from headrace.streaming.brokers.log.records import (
    MAX_READ_BYTES,
    Catalogue,
    append,
    check_new,
    delete_expired,
    ends,
    read,
)
from headrace.streaming.records import NewRecord, PartitionLag, Record, TopicPartition

_LOGGER: Final = logging.getLogger(__name__)


_FIRST_PAUSE_S: Final = 0.0005
_UNNOTIFIED_PAUSE_S: Final = 0.005
_MAX_PAUSE_S: Final = 0.05  # with notifications; changes without one wait this long
_HEARTBEATS_PER_TIMEOUT: Final = 3  # heartbeats within the session timeout
_RETRYABLE: Final = (UnavailableError, LogFullError)
_RETRY_PAUSE_S: Final = 0.1


class LogSession:
    """Session on an embedded log; see `ConsumerSession`.

    Both delivery guarantees use one transaction for records and offsets. Partitions are read in
    turn, so that none starves.

    Args:
        file: Connection that the session owns.
    """

    expired = 0
    is_member = True

    def __init__(
        self, file: LogFile, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        self._file = file
        self._membership = membership
        self._listener = listener
        self._clock = clock
        self._topics = Catalogue()
        self._ids: dict[TopicPartition, int] = {}
        """Assigned partitions, with their ids in the file."""
        self._next: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._turn = 0
        self._is_closed = False
        self._woken = threading.Event()
        self.problem = ""
        """See `ConsumerSession`."""
        self._fatal_error: HeadraceError | None = None
        self._generation = -1
        self._heartbeat_at = 0.0
        self._may_have_more = True
        with file.writing("join a group of") as db:
            self._epoch = groups.join(db, self._topics, membership, clock.now())
        self._is_notified = file.notifier.listen(f"{self._epoch:x}")

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return available records, at most about 32 MB; see `ConsumerSession`."""
        self._check_open()
        deadline = self._clock.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                records = self._step(max_records)
                self.problem = ""
            except _RETRYABLE as error:
                records, pause_s, self.problem = [], _RETRY_PAUSE_S, str(error)
            left_s = deadline - self._clock.monotonic()
            if records or left_s <= 0:
                return records
            if not self._woken.is_set():
                self._file.notifier.wait(min(pause_s, left_s))
            if self._woken.is_set():
                self._woken.clear()
                return []
            pause_s = min(pause_s * 2, _MAX_PAUSE_S if self._is_notified else _UNNOTIFIED_PAUSE_S)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Pause partitions; see `ConsumerSession`."""
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Resume partitions; see `ConsumerSession`."""
        self._paused.difference_update(partitions)
        self._may_have_more = True

    def produce(self, records: Sequence[NewRecord], offsets: Mapping[TopicPartition, int]) -> None:
        """Write records and offsets in one transaction; see `ConsumerSession`."""
        self._check_open()
        if not (records or offsets):
            return
        try:
            check_new(records)
            now_s = self._clock.now()
            with self._file.writing("deliver to") as db:
                groups.check_not_replaced(db, self._membership, self._epoch, allow_removed=False)
                ids = {self._topics.partition_id(db, partition): partition for partition in offsets}
                names = {
                    id_: f"{partition.topic}/{partition.partition}"
                    for id_, partition in ids.items()
                }
                groups.check_claims(db, self._membership, self._epoch, names)
                append(db, self._topics, records, now_s)
                groups.move(
                    db,
                    self._membership.group,
                    {id_: offsets[partition] for id_, partition in ids.items()},
                )
        except HeadraceError as error:
            self._fatal_error = error
            raise
        self._may_have_more = True  # own writes may be input, and are not notified

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002  # transactions are complete
        """Return True: nothing is in flight."""
        self._check_open()
        return True

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """Return the lag, read from the file; see `ConsumerSession`."""
        self._check_open()
        now_s = self._clock.now()
        lags: dict[TopicPartition, PartitionLag] = {}
        with self._file.reading("look at") as db:
            for partition, partition_id in self._ids.items():
                first, following = ends(db, partition_id)
                offset = max(groups.position(db, self._membership.group, partition_id) or 0, first)
                oldest = read(db, partition, partition_id, offset=offset, max_records=1)
                waits_s = max(now_s - oldest[0].timestamp_s, 0.0) if oldest else 0.0
                lags[partition] = PartitionLag(records=max(following - offset, 0), seconds=waits_s)
        return lags

    def wake(self) -> None:
        """Make `poll` return; safe to call from any thread."""
        self._woken.set()
        self._file.notifier.wake()

    def close(self) -> None:
        """Leave the group; see `ConsumerSession`. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._fatal_error = FailedPreconditionError("this session is closed; join again")
        try:
            with self._file.writing("leave a group of") as db:
                groups.leave(db, self._membership, self._epoch)
        except _RETRYABLE:
            pass  # the others remove it after its session timeout
        finally:
            self._file.close()

    def _check_open(self) -> None:
        if self._fatal_error is not None:
            raise type(self._fatal_error)(*self._fatal_error.args) from self._fatal_error

    def _step(self, max_records: int) -> list[Record]:
        """Rebalance if due, and return available records."""
        changed = self._file.has_changed()
        if changed or self._clock.monotonic() >= self._heartbeat_at:
            self._may_have_more = self._may_have_more or changed
            self._rebalance()
        if not self._may_have_more or max_records <= 0:
            return []
        with self._file.reading("read") as db:
            records, self._may_have_more = self._take(db, max_records)
        return records

    def _take(self, db: sqlite3.Connection, max_records: int) -> tuple[list[Record], bool]:
        """Return the next records, and whether there may be more."""
        partitions = [partition for partition in self._ids if partition not in self._paused]
        self._turn += 1
        records: list[Record] = []
        size = 0
        for number in range(len(partitions)):
            partition = partitions[(self._turn + number) % len(partitions)]
            some = read(
                db,
                partition,
                self._ids[partition],
                offset=self._next[partition],
                max_records=max_records - len(records),
            )
            if some:
                self._next[partition] = some[-1].offset + 1
                records += some
                size += sum(len(record.value or b"") for record in some)
            if len(records) >= max_records or size >= MAX_READ_BYTES:
                return records, True
        return records, False

    def _rebalance(self) -> None:
        is_due = self._clock.monotonic() >= self._heartbeat_at
        if not is_due:
            with self._file.reading("look at") as db:
                if groups.generation(db, self._membership.group) == self._generation:
                    return
        now_s = self._clock.now()
        held = {id_: partition for partition, id_ in self._ids.items()}
        try:
            with self._file.writing("look at") as db:
                moves = groups.heartbeat(
                    db,
                    self._topics,
                    self._membership,
                    self._epoch,
                    held=frozenset(held),
                    now_s=now_s,
                )
                for name in self._membership.topics:
                    delete_expired(db, self._topics.topic(db, name), now_s)
                self._generation = groups.generation(db, self._membership.group)
        except _RETRYABLE:
            raise
        except HeadraceError as error:
            self._fatal_error = error
            raise
        heartbeat_s = self._membership.session_timeout_s / _HEARTBEATS_PER_TIMEOUT
        self._heartbeat_at = self._clock.monotonic() + heartbeat_s
        if moves.lost:
            partitions = [held[id_] for id_ in moves.lost]
            self._drop(partitions)
            self._listener.on_lost(partitions)
        if moves.surplus:
            partitions = [held[id_] for id_ in moves.surplus]
            self._listener.on_revoked(partitions)
            self._drop(partitions)
            with self._file.writing("give away a part of") as db:
                groups.release(db, self._membership.group, self._epoch, moves.surplus)
        if moves.assigned:
            self._assign(moves.assigned)

    def _assign(self, ids: Sequence[int]) -> None:
        with self._file.reading("look at") as db:
            names = (self._topics.topic(db, name) for name in self._membership.topics)
            all_partitions = {
                id_: TopicPartition(topic.name, number)
                for topic in names
                for number, id_ in enumerate(topic.partitions)
            }
            partitions = {all_partitions[id_]: id_ for id_ in sorted(ids)}
            starts = {
                partition: self._start(db, partition, id_) for partition, id_ in partitions.items()
            }
        start_offsets = self._listener.on_assigned(list(partitions)) or {}
        check_start_offsets(start_offsets, partitions)
        self._ids.update(partitions)
        self._next.update({**starts, **start_offsets})
        self._may_have_more = True

    def _start(self, db: sqlite3.Connection, partition: TopicPartition, partition_id: int) -> int:
        """Return the group's offset in a partition."""
        first, _ = ends(db, partition_id)
        offset = groups.position(db, self._membership.group, partition_id) or 0
        if offset < first:
            _LOGGER.warning(
                "%s/%d: records %d to %d were deleted before group '%s' read them; keep "
                "more (retention_s, retention_bytes) or read faster",
                *(partition.topic, partition.partition, offset, first - 1, self._membership.group),
            )
        return max(offset, first)

    def _drop(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._ids.pop(partition, None)
            self._next.pop(partition, None)
            self._paused.discard(partition)
