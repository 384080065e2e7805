"""Topics and records of an embedded log: written, read, found by time, and dropped by retention."""

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
    """A topic that is there; the ids of its places, by partition."""

    name: str
    id: int
    places: tuple[int, ...]
    retention_s: float
    retention_bytes: int

    def place_id(self, partition: int) -> int:
        """Raises InvalidArgumentError if there is no such partition."""
        if not 0 <= partition < len(self.places):
            message = (
                f"topic {self.name} has no partition {partition}; it has {len(self.places)}, "
                "counted from 0"
            )
            raise InvalidArgumentError(message)
        return self.places[partition]


class Catalogue:
    """The topics that one connection has met; they never change."""

    def __init__(self) -> None:
        self._known: dict[str, Topic] = {}

    def topic(self, db: sqlite3.Connection, name: str) -> Topic:
        """Raises NotFoundError if it is not there."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _find_topic(db, name)
        return known

    def place_id(self, db: sqlite3.Connection, place: TopicPartition) -> int:
        """Raises NotFoundError, or InvalidArgumentError, if it is not there."""
        return self.topic(db, place.topic).place_id(place.partition)


def _find_topic(db: sqlite3.Connection, name: str) -> Topic:
    found = db.execute(
        "SELECT id, retention_s, retention_bytes FROM topics WHERE name = ?", (name,)
    ).fetchone()
    if found is None:
        known = [f"'{one}'" for (one,) in db.execute("SELECT name FROM topics ORDER BY 1 LIMIT 20")]
        there = ", ".join(known) or "none yet"
        message = f"there is no topic {name[:249]!r} in this log; there is: {there}"
        raise NotFoundError(message)
    id_, retention_s, retention_bytes = found
    places = db.execute("SELECT id FROM places WHERE topic = ? ORDER BY partition", (id_,))
    return Topic(name, id_, tuple(one for (one,) in places), retention_s, retention_bytes)


OFFSET_BITS: Final = 40
"""A record's id is the number of its place, and then so many bits of its offset."""
_SEGMENTS_AT_ONCE: Final = 2  # forgotten in one step: more than come in one, so that it keeps up


class _Segment(NamedTuple):
    written_s: float
    place_id: int
    first: int
    next: int
    bytes: int
    is_last: bool


def forget_old(db: sqlite3.Connection, topic: Topic, now_s: float) -> int:
    """Forget at most a few segments that are too old or too much; how many.

    The newest of a place stays, unless it is too old as a whole.
    """
    for step in range(_SEGMENTS_AT_ONCE):
        oldest = _first_to_go(db, topic, now_s)
        if oldest is None:
            return step
        start = oldest.place_id << OFFSET_BITS
        db.execute(
            "DELETE FROM records WHERE id >= ? AND id < ?",
            (start + oldest.first, start + oldest.next),
        )
        db.execute(
            "DELETE FROM segments WHERE place = ? AND first = ?", (oldest.place_id, oldest.first)
        )
        db.execute(
            "UPDATE places SET first = ?, bytes = bytes - ? WHERE id = ?",
            (oldest.next, oldest.bytes, oldest.place_id),
        )
    return _SEGMENTS_AT_ONCE


def _first_to_go(db: sqlite3.Connection, topic: Topic, now_s: float) -> _Segment | None:
    oldest = [segment for place_id in topic.places for segment in _oldest(db, place_id)]
    aged = min(oldest, default=None)
    if aged is not None and aged.written_s < now_s - topic.retention_s:
        return aged
    (size,) = db.execute("SELECT sum(bytes) FROM places WHERE topic = ?", (topic.id,)).fetchone()
    if size <= topic.retention_bytes:
        return None
    return min((segment for segment in oldest if not segment.is_last), default=None)


def _oldest(db: sqlite3.Connection, place_id: int) -> list[_Segment]:
    """The oldest of a place, if there is any."""
    rows = db.execute(
        "SELECT written_s, place, first, next, bytes FROM segments WHERE place = ? "
        "ORDER BY first LIMIT 2",
        (place_id,),
    ).fetchall()
    return [_Segment._make((*row, len(rows) == 1)) for row in rows[:1]]


MAX_RECORD_BYTES: Final = 64 << 20
MAX_READ_BYTES: Final = 32 << 20
"""What one read holds at most, though it may be more than one record by the last one."""
_OFFSET: Final = (1 << OFFSET_BITS) - 1
_SEGMENT_RECORDS: Final = 4096
_SEGMENT_BYTES: Final = 4 << 20
_OVERHEAD_BYTES: Final = 24  # of a record on its page, about
_READ: Final = """
SELECT id, key, value, headers, timestamp_s FROM records WHERE id >= ? AND id < ?
ORDER BY id LIMIT ?
"""
_encode_headers: Final = msgspec.msgpack.Encoder().encode
_decode_headers: Final = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode
_Row = tuple[int, bytes | None, bytes | None, bytes | None, float]
_Columns = tuple[list[bytes | None], list[bytes | None], list[bytes | None], list[float]]
"""Keys, values, headers and times of records: SQLite takes them fastest so."""


def append(
    db: sqlite3.Connection, topics: Catalogue, records: Sequence[NewRecord], now_s: float
) -> None:
    """Write records, in the caller's transaction; forget some that are old."""
    by_place: dict[tuple[Topic, int], _Columns] = {}
    turn = random.getrandbits(16)  # a record without a key may go anywhere
    for record in records:
        topic = topics.topic(db, record.topic)
        if record.partition is not None:
            place_id = topic.place_id(record.partition)
        elif len(topic.places) == 1:
            place_id = topic.places[0]
        else:
            if record.key is None:
                turn += 1
            number = turn if record.key is None else crc32(record.key)
            place_id = topic.places[number % len(topic.places)]
        columns = by_place.get((topic, place_id))
        if columns is None:
            columns = by_place[topic, place_id] = ([], [], [], [])
        columns[0].append(record.key)
        columns[1].append(record.value)
        columns[2].append(_encode_headers(record.headers) if record.headers else None)
        columns[3].append(now_s if record.timestamp_s is None else record.timestamp_s)
    for (topic, place_id), columns in by_place.items():
        if _append_rows(db, place_id, columns, now_s):
            forget_old(db, topic, now_s)


def read(
    db: sqlite3.Connection, place: TopicPartition, place_id: int, *, offset: int, most: int
) -> list[Record]:
    """Records of a place from an offset on; fewer than `most` where they are large."""
    start = place_id << OFFSET_BITS
    rows = db.execute(_READ, (start + max(offset, 0), start + _OFFSET, most))
    return [
        Record(
            place=place,
            offset=id_ & _OFFSET,
            key=key,
            value=value,
            headers=_decode_headers(headers) if headers else (),
            timestamp_s=timestamp_s,
        )
        for id_, key, value, headers, timestamp_s in _bounded(rows)
    ]


def ends(db: sqlite3.Connection, place_id: int) -> tuple[int, int]:
    """The first offset that is there, and the next that will be written."""
    first, following = db.execute(
        "SELECT first, next FROM places WHERE id = ?", (place_id,)
    ).fetchone()
    return first, following


def offset_at(db: sqlite3.Connection, place_id: int, at_s: float) -> int:
    """The offset of the first record of this time or later; the next one where there is none."""
    segments = db.execute(
        "SELECT first, next FROM segments WHERE place = ? AND high_s >= ? ORDER BY first",
        (place_id, at_s),
    )
    start = place_id << OFFSET_BITS
    # The first has it, unless what made its `high_s` was forgotten.
    for first, following in segments:
        found = db.execute(
            "SELECT id FROM records WHERE id >= ? AND id < ? AND timestamp_s >= ? "
            "ORDER BY id LIMIT 1",
            (start + first, start + following, at_s),
        ).fetchone()
        if found is not None:
            return int(found[0]) & _OFFSET
    return ends(db, place_id)[1]


def time_of(db: sqlite3.Connection, place_id: int, offset: int) -> float | None:
    """When the first record from this offset on was written; None where there is none."""
    start = place_id << OFFSET_BITS
    found = db.execute(
        "SELECT timestamp_s FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 1",
        (start + offset, start + _OFFSET),
    ).fetchone()
    return None if found is None else float(found[0])


def check_new(records: Sequence[NewRecord]) -> None:
    """Raises InvalidArgumentError for a record that no log takes."""
    for record in records:
        if record.timestamp_s is not None and not math.isfinite(record.timestamp_s):
            message = f"a record for {record.topic} is of the time {record.timestamp_s}"
            raise InvalidArgumentError(message)
        size = len(record.key or b"") + len(record.value or b"")
        if size > MAX_RECORD_BYTES:
            message = (
                f"a record of {size} bytes for {record.topic} exceeds the limit of "
                f"{MAX_RECORD_BYTES} bytes; put what is large elsewhere, and its address here"
            )
            raise InvalidArgumentError(message)


def _append_rows(db: sqlite3.Connection, place_id: int, columns: _Columns, now_s: float) -> bool:
    """Whether they began a new segment."""
    (following,) = db.execute("SELECT next FROM places WHERE id = ?", (place_id,)).fetchone()
    start = (place_id << OFFSET_BITS) + following
    db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", zip(count(start), *columns))
    *blobs, times = columns
    newest_s = max(times)
    size = _OVERHEAD_BYTES * len(times)
    size += sum(sum(map(len, filter(None, column))) for column in blobs)
    end = following + len(times)
    db.execute("UPDATE places SET next = ?, bytes = bytes + ? WHERE id = ?", (end, size, place_id))
    last = db.execute(
        "SELECT first, bytes, high_s FROM segments WHERE place = ? ORDER BY first DESC LIMIT 1",
        (place_id,),
    ).fetchone()
    first, before, high_s = (following, 0, -math.inf) if last is None else last
    is_new = last is None or following - first >= _SEGMENT_RECORDS or before >= _SEGMENT_BYTES
    if is_new:
        first, before = following, 0
    db.execute(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)",
        (place_id, first, end, before + size, max(high_s, newest_s), now_s),
    )
    return is_new


def _bounded(rows: Iterator[_Row]) -> Iterator[_Row]:
    left = MAX_READ_BYTES
    for row in rows:
        yield row
        left -= len(row[2] or b"")
        if left <= 0:
            return
