"""What does an embedded log forget, and when? Segments of places, the oldest first."""

import sqlite3
from typing import Final, NamedTuple

from headrace.streaming.brokers.log_topics import Topic

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
