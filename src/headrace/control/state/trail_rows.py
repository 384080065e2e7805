"""How is the trail kept? By ids without gaps, each entry's hash over the one before."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, insert, select

from headrace.control.access.trail import GENESIS, Change, Entry, Head, chained
from headrace.control.state.counters import count_up
from headrace.control.state.encoding import clean, encoded
from headrace.control.state.tables import TRAIL, AnyRow


def add_changes(connection: Connection, changes: Sequence[Change]) -> None:
    """Append to the trail."""
    if not changes:
        return
    # The counter's row is held until the transaction ends, so nobody else reads the same end.
    last = count_up(connection, "trail", len(changes))
    first = last - len(changes) + 1
    before = connection.execute(select(TRAIL.c.hash).where(TRAIL.c.id == first - 1)).scalar()
    previous = GENESIS if before is None else str(before)
    entries = []
    for number, change in enumerate(changes, start=first):
        entry = chained(
            Entry(
                id=number,
                at=change.at,
                actor=clean(change.actor),
                action=clean(change.action),
                object=clean(change.object),
                before=clean(encoded(change.before)),
                after=clean(encoded(change.after)),
                previous=previous,
                hash="",
            )
        )
        previous = entry.hash
        entries.append(msgspec.structs.asdict(entry))
    connection.execute(insert(TRAIL), entries)


def read_trail(connection: Connection, *, after: int, limit: int, newest: bool) -> list[Entry]:
    """Entries with an id above `after`, in order: the first `limit` of them, or the last."""
    order = TRAIL.c.id.desc() if newest else TRAIL.c.id
    query = select(TRAIL).where(TRAIL.c.id > after).order_by(order).limit(limit)
    found = [_entry(row) for row in connection.execute(query)]
    return found[::-1] if newest else found


def read_head(connection: Connection) -> Head:
    """Where the trail ends."""
    row = connection.execute(
        select(TRAIL.c.id, TRAIL.c.hash).order_by(TRAIL.c.id.desc()).limit(1)
    ).first()
    return Head() if row is None else Head(count=row.id, hash=row.hash)


def _entry(row: AnyRow) -> Entry:
    return Entry(**row._asdict())
