"""Where is a member at each of its places of an embedded log, and what comes next there?"""

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from headrace.streaming.brokers.log_group import position
from headrace.streaming.brokers.log_records import MAX_READ_BYTES, ends, read
from headrace.streaming.records import Place, Record

_LOGGER: Final = logging.getLogger(__name__)


class LogReader:
    """Positions of a member of `group`; reads places in turn, so that none starves."""

    def __init__(self, group: str) -> None:
        self.is_closed = False
        self._group = group
        self._ids: dict[Place, int] = {}
        self._next: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._turn = 0

    @property
    def held(self) -> Mapping[Place, int]:
        """The places that it has, with their ids."""
        return self._ids

    def starts(self, db: sqlite3.Connection, places: Mapping[Place, int]) -> Mapping[Place, int]:
        """Where the group is at each of these places (and their ids)."""
        found = {}
        for place, place_id in places.items():
            first, _ = ends(db, place_id)
            at = position(db, self._group, place_id) or 0
            if at < first:
                _LOGGER.warning(
                    "%s/%d: records %d to %d were forgotten before group '%s' read them; keep "
                    "more (retention_s, retention_bytes) or read faster",
                    *(place.topic, place.partition, at, first - 1, self._group),
                )
            found[place] = max(at, first)
        return found

    def add(self, places: Mapping[Place, int], starts: Mapping[Place, int]) -> None:
        """Read these too (with their ids), from there on."""
        self._ids.update(places)
        self._next.update(starts)

    def drop(self, places: Sequence[Place]) -> None:
        """Read these no more."""
        for place in places:
            self._ids.pop(place, None)
            self._next.pop(place, None)
            self._paused.discard(place)

    def pause(self, places: Sequence[Place]) -> None:
        """Hand out nothing of these."""
        self._paused.update(places)

    def resume(self, places: Sequence[Place]) -> None:
        """The contrary."""
        self._paused.difference_update(places)

    def take(self, db: sqlite3.Connection, most: int) -> tuple[list[Record], bool]:
        """What comes next, and whether there may be more."""
        places = [place for place in self._ids if place not in self._paused]
        self._turn += 1
        found: list[Record] = []
        size = 0
        for number in range(len(places)):
            place = places[(self._turn + number) % len(places)]
            some = read(
                db, place, self._ids[place], offset=self._next[place], most=most - len(found)
            )
            if some:
                self._next[place] = some[-1].offset + 1
                found += some
                size += sum(len(record.value or b"") for record in some)
            if len(found) >= most or size >= MAX_READ_BYTES:
                return found, True
        return found, False
