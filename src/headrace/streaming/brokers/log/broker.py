"""Embedded log: streams on one machine with nothing installed.

It has topics with partitions, groups with members in several processes, replay by time, and
transactions of outputs and offsets. Killing a process loses no written record. A power failure may
lose about the last second of both outputs and offsets, so the rest is consistent; with `?sync=full`
it loses nothing, and each write waits for the disk.

Records older than a week are deleted, and the oldest of a topic beyond 8 GiB, read or not, as in
Kafka; `?retention_s=` and `?retention_bytes=` set that for new topics. Space is reused; the file
does not shrink. It must be on a local disk, not on a network file system.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from headrace.core import Clock, FailedPreconditionError, InvalidArgumentError, SystemClock
from headrace.core.names import check_name
from headrace.streaming.broker import BrokerFeatures, Membership, Rebalanced
from headrace.streaming.brokers.checks import check_membership, check_text, check_topic, positive
from headrace.streaming.brokers.log import group as groups
from headrace.streaming.brokers.log.file import LogFile, Sync
from headrace.streaming.brokers.log.records import (
    Catalogue,
    append,
    check_new,
    ends,
    offset_at,
    read,
)
from headrace.streaming.brokers.log.session import LogSession
from headrace.streaming.records import NewRecord, Record, TopicPartition

RETENTION_S: Final = 7 * 86_400.0
RETENTION_BYTES: Final = 8 << 30
LOCK_TIMEOUT_S: Final = 10.0
_MAX_PARTITIONS: Final = 1024
_T = TypeVar("_T")
_BATCH_SIZE: Final = 5000  # records of one transaction of `send`, so that other writers can proceed


class LogBroker:
    """Broker in a local folder; see `Broker`.

    Args:
        retention_s: How long new topics keep records.
        retention_bytes: How many bytes each new topic keeps.
        lock_timeout_s: How long a write waits for other processes.
    """

    abilities = BrokerFeatures(
        exactly_once="answers and offsets in one transaction", partitions=True, rebalances=True
    )

    def __init__(
        self,
        folder: Path,
        *,
        sync: Sync = Sync.NORMAL,
        retention_s: float = RETENTION_S,
        retention_bytes: int = RETENTION_BYTES,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        if not (retention_s > 0 and retention_bytes > 0):
            message = "retention_s and retention_bytes of a log must be greater than 0"
            raise InvalidArgumentError(message)
        self._folder = folder
        self._sync = sync
        self._retention = (retention_s, retention_bytes)
        self._lock_timeout_s = lock_timeout_s
        self._clock = SystemClock() if clock is None else clock
        self._topics = Catalogue()
        self._lock = threading.Lock()
        self._opened: LogFile | None = self._open()

    def join(self, membership: Membership, listener: Rebalanced) -> LogSession:
        """Join a group; see `Broker`."""
        check_membership(membership)
        with self._file():
            pass
        file = self._open()
        try:
            return LogSession(file, membership, listener, self._clock)
        except BaseException:
            file.close()
            raise

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> None:
        """Create a topic unless it exists; see `Broker`."""
        check_topic(topic)
        partitions = len(self.ends(like)) if like else partitions
        if not 1 <= partitions <= _MAX_PARTITIONS:
            message = f"a topic has 1 to {_MAX_PARTITIONS} partitions, not {partitions}"
            raise InvalidArgumentError(message)
        with self._file() as file, file.writing("create a topic in") as db:
            created = db.execute(
                "INSERT INTO topics (name, retention_s, retention_bytes) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO NOTHING RETURNING id",
                (topic, *self._retention),
            ).fetchall()
            for (id_,) in created:
                db.executemany(
                    "INSERT INTO places (topic, partition) VALUES (?, ?)",
                    [(id_, number) for number in range(partitions)],
                )

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records; see `Broker`. A transaction has a few thousand records."""
        check_new(records)
        with self._file() as file:
            for start in range(0, len(records), _BATCH_SIZE):
                with file.writing("write to") as db:
                    some = records[start : start + _BATCH_SIZE]
                    append(db, self._topics, some, self._clock.now())

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on; see `Broker`."""
        records: list[Record] = []
        with self._file() as file, file.reading("read") as db:
            self._topics.topic(db, topic)
            for partition, offset in after.items():
                partition_id = self._topics.partition_id(db, partition)
                left = max_records - len(records)
                if left > 0:
                    records += read(db, partition, partition_id, offset=offset, max_records=left)
        return records

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return first and next offsets; see `Broker`."""
        return self._by_partition(topic, ends)

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Return offsets by time; see `Broker`."""
        return self._by_partition(topic, lambda db, id_: offset_at(db, id_, at_s))

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Return committed offsets; see `Broker`."""
        positions = self._by_partition(topic, lambda db, id_: groups.position(db, group, id_))
        return {partition: offset for partition, offset in positions.items() if offset is not None}

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set committed offsets; see `Broker`."""
        check_text("group", group)
        with self._file() as file, file.writing("move a group in") as db:
            positions: dict[int, int] = {}
            for partition, offset in offsets.items():
                partition_id = self._topics.partition_id(db, partition)
                _, following = ends(db, partition_id)
                if not 0 <= offset <= following:
                    message = (
                        f"{partition.topic}/{partition.partition} ends at {following}, not {offset}"
                    )
                    raise InvalidArgumentError(message)
                positions[partition_id] = offset
            if groups.is_alive(db, group, self._clock.now()):
                message = f"a member of group '{group}' runs; stop the stream first"
                raise FailedPreconditionError(message)
            groups.move(db, group, positions)

    def close(self) -> None:
        """Close the file; sessions have their own. Idempotent."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _by_partition(
        self, topic: str, query: Callable[[sqlite3.Connection, int], _T]
    ) -> dict[TopicPartition, _T]:
        """Return the result of a query by partition id for each partition of a topic."""
        with self._file() as file, file.reading("look at") as db:
            partitions = self._topics.topic(db, topic).partitions
            return {TopicPartition(topic, n): query(db, id_) for n, id_ in enumerate(partitions)}

    def _open(self) -> LogFile:
        return LogFile(self._folder, sync=self._sync, lock_timeout_s=self._lock_timeout_s)

    @contextmanager
    def _file(self) -> Iterator[LogFile]:
        with self._lock:
            if self._opened is None:
                raise FailedPreconditionError("this broker is closed; open it again")
            yield self._opened


def open_log(url: str, *, home: Path) -> LogBroker:
    """Return the log that `log:NAME` or `log:///PATH` names, with `?sync=`, `?retention_s=`...

    Raises:
        InvalidArgumentError: The URL names no log.
        HeadraceError: The log cannot be used; the message contains the reason.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc:
        message = f"{url[:200]!r} names a host, but a log is local: use log:NAME or log:///PATH"
        raise InvalidArgumentError(message)
    folder = Path(path) if path.startswith("/") else home / "streams" / check_name(path, kind="log")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - {"sync", "retention_s", "retention_bytes"})
    if unknown:
        message = (
            f"a log has no option '{unknown[0][:60]}'; use sync, retention_s or retention_bytes"
        )
        raise InvalidArgumentError(message)
    sync = options.get("sync", Sync.NORMAL)
    if sync not in set(Sync):
        raise InvalidArgumentError(f"sync={sync[:60]!r} of a log: use {' or '.join(Sync)}")
    return LogBroker(
        folder,
        sync=Sync(sync),
        retention_s=positive(options, "retention_s", RETENTION_S),
        retention_bytes=int(positive(options, "retention_bytes", RETENTION_BYTES)),
    )
