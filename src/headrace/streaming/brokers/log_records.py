"""Records in an embedded log: written, read, found by time, and forgotten when they are old."""

import math
import random
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final
from zlib import crc32

import msgspec

from headrace.core import InvalidArgumentError
from headrace.streaming.brokers.log_forget import OFFSET_BITS, forget_old
from headrace.streaming.brokers.log_topics import Catalogue, Topic
from headrace.streaming.records import NewRecord, Place, Record

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
    db: sqlite3.Connection, place: Place, place_id: int, *, offset: int, most: int
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
