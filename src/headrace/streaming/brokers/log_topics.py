"""Which topics does an embedded log have, and by which numbers are their places kept?"""

import sqlite3
from typing import NamedTuple

from headrace.core import InvalidArgumentError, NotFoundError
from headrace.streaming.records import Place


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

    def place_id(self, db: sqlite3.Connection, place: Place) -> int:
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
