"""How are rollouts and events kept? A rollout by its revision, events by ids without gaps."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from headrace.control.state.counters import count_up
from headrace.control.state.encoding import check_readable, clean, decoded, encoded
from headrace.control.state.tables import EVENTS, ROLLOUTS, AnyRow
from headrace.control.store import Event, RolloutRecord
from headrace.core import ConflictError

_TEXTS: Final = ("endpoint", "kind", "reason", "message", "rollout", "actor")


def save_rollout(connection: Connection, record: RolloutRecord) -> RolloutRecord:
    """Add or replace a rollout; as stored, its revision one higher.

    Raises:
        ConflictError: The stored revision is another.
        InvalidArgumentError: It could not be read again.
    """
    stored = msgspec.structs.replace(record, revision=record.revision + 1)
    text = encoded(msgspec.structs.replace(stored, evidence=b""))
    check_readable(text, RolloutRecord, what=f"rollout {record.id}")
    values = {
        "endpoint": record.endpoint,
        "revision": stored.revision,
        "is_over": record.state.phase.is_over,
        "record": text,
        "evidence": record.evidence,
    }
    if record.revision == 0:
        _add_rollout(connection, record.id, values)
        return stored
    is_same = (ROLLOUTS.c.id == record.id) & (ROLLOUTS.c.revision == record.revision)
    if connection.execute(update(ROLLOUTS).where(is_same).values(values)).rowcount != 1:
        found = connection.execute(
            select(ROLLOUTS.c.revision).where(ROLLOUTS.c.id == record.id)
        ).scalar()
        raise _changed(record.id, record.revision, found)
    return stored


def _add_rollout(connection: Connection, rollout: str, values: dict[str, Any]) -> None:
    serial = count_up(connection, "rollouts", 1)
    try:
        # A savepoint: Postgres gives up the whole transaction at an error.
        with connection.begin_nested():
            connection.execute(insert(ROLLOUTS).values(id=rollout, serial=serial, **values))
    except IntegrityError as error:
        raise _changed(rollout, 0, None) from error


def _changed(rollout: str, expected: int, found: int | None) -> ConflictError:
    if expected == 0:
        return ConflictError(f"there is a rollout {rollout} already; read it again")
    now = "is gone" if found is None else f"is at revision {found}"
    return ConflictError(f"rollout {rollout} {now}, not at {expected}; read it again")


def read_rollouts(connection: Connection, endpoint: str, limit: int) -> list[RolloutRecord]:
    """Rollouts, the newest first; of all endpoints if `endpoint` is empty."""
    query = select(ROLLOUTS).order_by(ROLLOUTS.c.serial.desc()).limit(limit)
    if endpoint:
        query = query.where(ROLLOUTS.c.endpoint == clean(endpoint))
    return [_rollout(row) for row in connection.execute(query)]


def read_rollout(connection: Connection, rollout: str) -> RolloutRecord | None:
    """The rollout of this id."""
    row = connection.execute(select(ROLLOUTS).where(ROLLOUTS.c.id == clean(rollout))).first()
    return None if row is None else _rollout(row)


def newest_rollouts(connection: Connection) -> dict[str, RolloutRecord]:
    """The newest rollout of each endpoint that had one."""
    newest = select(func.max(ROLLOUTS.c.serial)).group_by(ROLLOUTS.c.endpoint)
    rows = connection.execute(select(ROLLOUTS).where(ROLLOUTS.c.serial.in_(newest)))
    return {row.endpoint: _rollout(row) for row in rows}


def _rollout(row: AnyRow) -> RolloutRecord:
    record = decoded(row.record, RolloutRecord, what=f"rollout {row.id}")
    return msgspec.structs.replace(record, revision=row.revision, evidence=row.evidence)


def add_events(connection: Connection, events: Sequence[Event]) -> list[Event]:
    """Append events; the same with their ids."""
    if not events:
        return []
    # The counter's row is held until the transaction ends, so ids appear in their order.
    last = count_up(connection, "events", len(events))
    first = last - len(events) + 1
    stored = [
        msgspec.structs.replace(
            event, id=first + i, **{name: clean(getattr(event, name)) for name in _TEXTS}
        )
        for i, event in enumerate(events)
    ]
    rows = [msgspec.structs.asdict(event) | {"data": encoded(event.data)} for event in stored]
    connection.execute(insert(EVENTS), rows)
    return stored


def read_events(
    connection: Connection, *, endpoint: str, kind: str, after: int, limit: int, newest: bool
) -> list[Event]:
    """Events with an id above `after`, in order: the first `limit` of them, or the last."""
    order = EVENTS.c.id.desc() if newest else EVENTS.c.id
    query = select(EVENTS).where(EVENTS.c.id > after).order_by(order).limit(limit)
    if endpoint:
        query = query.where(EVENTS.c.endpoint == clean(endpoint))
    if kind:
        query = query.where(EVENTS.c.kind == kind)
    found = [_event(row) for row in connection.execute(query)]
    return found[::-1] if newest else found


def _event(row: AnyRow) -> Event:
    values = row._asdict()
    values["data"] = decoded(values["data"], dict[str, Any], what=f"event {row.id}")
    return Event(**values)
