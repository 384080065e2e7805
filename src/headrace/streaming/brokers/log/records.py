"""Topics and records of an embedded log: append, read, search by time, and retention."""

import math
import random
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from headrace.core import InvalidArgumentError, NotFoundError
from headrace.streaming.records import NewRecord, Record, TopicPartition


class Topic(NamedTuple):
    """A topic and its partition ids."""

    name: str
    partitions: tuple[int, ...]
    id: int
    retention_s: float
    retention_bytes: int

    def partition_id(self, partition: int) -> int:
        """Return the id of a partition; raise InvalidArgumentError if it does not exist."""
        if not 0 <= partition < len(self.partitions):
            message = (
                f"topic {self.name} has no partition {partition}; it has {len(self.partitions)}, "
                "numbered from 0"
            )
            raise InvalidArgumentError(message)
        return self.partitions[partition]


class Catalogue:
    """Cache of the topics that one connection has used; topics never change."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}

    def topic(self, db: sqlite3.Connection, name: str) -> Topic:
        """Return a topic; raise NotFoundError if it does not exist."""
        if name in self._topics:
            return self._topics[name]
        row = db.execute(
            "SELECT id, retention_s, retention_bytes FROM topics WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            names = [
                f"'{other}'"
                for (other,) in db.execute("SELECT name FROM topics ORDER BY 1 LIMIT 20")
            ]
            there = ", ".join(names) or "none yet"
            message = f"topic {name[:249]!r} does not exist in this log; existing topics: {there}"
            raise NotFoundError(message)
        rows = db.execute("SELECT id FROM places WHERE topic = ? ORDER BY partition", row[:1])
        self._topics[name] = Topic(name, tuple([id_ for (id_,) in rows]), *row)
        return self._topics[name]

    def partition_id(self, db: sqlite3.Connection, partition: TopicPartition) -> int:
        """Return the id of a partition; raise NotFoundError or InvalidArgumentError without one."""
        return self.topic(db, partition.topic).partition_id(partition.partition)


OFFSET_BITS: Final = 40
"""Low bits of a record's id, which hold the offset; the others hold the partition id."""
_SEGMENTS_PER_STEP: Final = 2  # deleted per step; more than are written per step


# The oldest segment of each partition is due by age, or by size unless it is the newest as well.
_EXPIRED: Final = """
SELECT place, segments.first, segments.next, segments.bytes FROM segments
JOIN places ON places.id = place AND topic = :topic
WHERE segments.first = (SELECT min(first) FROM segments WHERE place = places.id) AND (
    written_s < :written_s OR (segments.next < places.next AND :bytes <
    (SELECT sum(bytes) FROM places WHERE topic = :topic))
) ORDER BY written_s LIMIT 1
"""


def delete_expired(db: sqlite3.Connection, topic: Topic, now_s: float) -> None:
    """Delete a few segments that exceed the retention.

    The newest segment of a partition stays, unless all of it is too old.
    """
    limits = {
        "topic": topic.id,
        "written_s": now_s - topic.retention_s,
        "bytes": topic.retention_bytes,
    }
    for _ in range(_SEGMENTS_PER_STEP):
        for partition_id, first, end, size in db.execute(_EXPIRED, limits).fetchall():
            start = partition_id << OFFSET_BITS
            db.execute("DELETE FROM records WHERE id >= ? AND id < ?", (start + first, start + end))
            db.execute("DELETE FROM segments WHERE place = ? AND first = ?", (partition_id, first))
            db.execute(
                "UPDATE places SET first = ?, bytes = bytes - ? WHERE id = ?",
                (end, size, partition_id),
            )


MAX_RECORD_BYTES: Final = 64 << 20
MAX_READ_BYTES: Final = 32 << 20
"""Maximum bytes of one read, which its last record may exceed."""
_OFFSET: Final = (1 << OFFSET_BITS) - 1
_SEGMENT_RECORDS: Final = 4096
_SEGMENT_BYTES: Final = 4 << 20
_OVERHEAD_BYTES: Final = 24  # approximate overhead of a record on its page
_READ: Final = """
SELECT id, key, value, headers, timestamp_s FROM records WHERE id >= ? AND id < ?
ORDER BY id LIMIT ?
"""
_encode_headers: Final = msgspec.msgpack.Encoder().encode
_decode_headers: Final = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode
_Row = tuple[int, bytes | None, bytes | None, bytes | None, float]
_Columns = tuple[list[bytes | None], list[bytes | None], list[bytes | None], list[float]]
"""Keys, values, headers and times of records: the fastest form for SQLite."""


def append(
    db: sqlite3.Connection, topics: Catalogue, records: Sequence[NewRecord], now_s: float
) -> None:
    """Write records in the caller's transaction, and delete some expired ones."""
    by_partition: dict[tuple[Topic, int], _Columns] = {}
    turn = random.getrandbits(16)  # a record without a key may go anywhere
    for record in records:
        topic = topics.topic(db, record.topic)
        if record.partition is not None:
            partition_id = topic.partition_id(record.partition)
        elif len(topic.partitions) == 1:
            partition_id = topic.partitions[0]
        else:
            if record.key is None:
                turn += 1
            number = turn if record.key is None else crc32(record.key)
            partition_id = topic.partitions[number % len(topic.partitions)]
        columns = by_partition.get((topic, partition_id))
        if columns is None:
            columns = by_partition[topic, partition_id] = ([], [], [], [])
        columns[0].append(record.key)
        columns[1].append(record.value)
        columns[2].append(_encode_headers(record.headers) if record.headers else None)
        columns[3].append(now_s if record.timestamp_s is None else record.timestamp_s)
    for (topic, partition_id), columns in by_partition.items():
        if _append_rows(db, partition_id, columns, now_s):
            delete_expired(db, topic, now_s)


def read(
    db: sqlite3.Connection,
    partition: TopicPartition,
    partition_id: int,
    *,
    offset: int,
    max_records: int,
) -> list[Record]:
    """Return records of a partition from an offset on; fewer where they are large."""
    start = partition_id << OFFSET_BITS
    rows = db.execute(_READ, (start + max(offset, 0), start + _OFFSET, max_records))
    return [
        Record(
            topic_partition=partition,
            offset=id_ & _OFFSET,
            key=key,
            value=value,
            headers=_decode_headers(headers) if headers else (),
            timestamp_s=timestamp_s,
        )
        for id_, key, value, headers, timestamp_s in _bounded(rows)
    ]


def ends(db: sqlite3.Connection, partition_id: int) -> tuple[int, int]:
    """Return the first available and the next offset."""
    first, following = db.execute(
        "SELECT first, next FROM places WHERE id = ?", (partition_id,)
    ).fetchone()
    return first, following


def offset_at(db: sqlite3.Connection, partition_id: int, at_s: float) -> int:
    """Return the offset of the first record at this time or later; else the next offset."""
    segments = db.execute(
        "SELECT first, next FROM segments WHERE place = ? AND high_s >= ? ORDER BY first",
        (partition_id, at_s),
    )
    start = partition_id << OFFSET_BITS
    # The first segment has it, unless the record with its `high_s` was deleted.
    for first, following in segments:
        row = db.execute(
            "SELECT id FROM records WHERE id >= ? AND id < ? AND timestamp_s >= ? "
            "ORDER BY id LIMIT 1",
            (start + first, start + following, at_s),
        ).fetchone()
        if row is not None:
            return int(row[0]) & _OFFSET
    return ends(db, partition_id)[1]


def check_new(records: Sequence[NewRecord]) -> None:
    """Raise InvalidArgumentError for a record that a log does not accept."""
    for record in records:
        if record.timestamp_s is not None and not math.isfinite(record.timestamp_s):
            message = f"invalid timestamp {record.timestamp_s} in a record for '{record.topic}'"
            raise InvalidArgumentError(message)
        size = len(record.key or b"") + len(record.value or b"")
        if size > MAX_RECORD_BYTES:
            message = (
                f"a record of {size} bytes for {record.topic} exceeds the limit of "
                f"{MAX_RECORD_BYTES} bytes; store large values elsewhere and send their address"
            )
            raise InvalidArgumentError(message)


def _append_rows(
    db: sqlite3.Connection, partition_id: int, columns: _Columns, now_s: float
) -> bool:
    """Write rows; return whether they began a new segment."""
    (following,) = db.execute("SELECT next FROM places WHERE id = ?", (partition_id,)).fetchone()
    start = (partition_id << OFFSET_BITS) + following
    db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", zip(count(start), *columns))
    *blobs, times = columns
    newest_s = max(times)
    size = _OVERHEAD_BYTES * len(times)
    size += sum(sum(map(len, filter(None, column))) for column in blobs)
    end = following + len(times)
    db.execute(
        "UPDATE places SET next = ?, bytes = bytes + ? WHERE id = ?", (end, size, partition_id)
    )
    last = db.execute(
        "SELECT first, bytes, high_s FROM segments WHERE place = ? ORDER BY first DESC LIMIT 1",
        (partition_id,),
    ).fetchone()
    first, before, high_s = (following, 0, -math.inf) if last is None else last
    is_new = last is None or following - first >= _SEGMENT_RECORDS or before >= _SEGMENT_BYTES
    if is_new:
        first, before = following, 0
    db.execute(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)",
        (partition_id, first, end, before + size, max(high_s, newest_s), now_s),
    )
    return is_new


def _bounded(rows: Iterator[_Row]) -> Iterator[_Row]:
    left = MAX_READ_BYTES
    for row in rows:
        yield row
        left -= len(row[2] or b"")
        if left <= 0:
            return
