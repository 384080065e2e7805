"""Rows of the desired state, its history, rollouts and events; only changed rows are written."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.desired import (
    DesiredEndpoint,
    DesiredState,
    DesiredStream,
    SpecFile,
)
from headrace.control.model.records import EndpointGeneration, Event, RolloutRecord
from headrace.control.state.access_rows import add_changes
from headrace.control.state.database import count_up
from headrace.control.state.encoding import (
    check_readable,
    clean,
    decoded,
    encoded,
    join_document,
    maybe_document,
    split_document,
)
from headrace.control.state.tables import ENDPOINTS, EVENTS, GENERATIONS, ROLLOUTS, STATE, AnyRow
from headrace.core import ConflictError, FailedPreconditionError, InvalidArgumentError
from headrace.core.spec.scale import PoolSpec

_TEXTS: Final = ("endpoint", "kind", "reason", "message", "rollout", "actor")
_OF_HISTORY: Final = ("generation", "document", "pinned")
Rows = list[dict[str, Any]]
_SOME: Final = 500
"""Most names per statement; SQLite allows 32,766 parameters, older versions 999."""


def save(
    connection: Connection,
    state: DesiredState,
    *,
    timestamp: float,
    reason: str,
    actor: str = "",
    rollouts: Sequence[RolloutRecord] = (),
    events: Sequence[Event] = (),
    changes: Sequence[AuditEntry] = (),
) -> list[RolloutRecord]:
    """Replace the state; add each endpoint with a new `generation` to its history.

    A removed endpoint gets an entry without a document. Rollouts that the change begins or ends,
    events and audit log entries are stored in the same transaction. Returns the rollouts as stored.

    Raises:
        ConflictError: `state.generation` is not one more than the stored one, an endpoint's
            generation is not new, or another writer changed a rollout.
        InvalidArgumentError: A record could not be read again.
        FailedPreconditionError: The state cannot be stored; the old state stays.
    """
    replace_state(connection, state, timestamp=timestamp, reason=reason, actor=actor)
    stored = [_save_rollout(connection, record) for record in rollouts]
    add_events(connection, events)
    add_changes(connection, changes)
    return stored


def load_state(connection: Connection) -> DesiredState:
    """Return the newest state; generation 0 if none was saved."""
    state = connection.execute(select(STATE)).one_or_none()
    if state is None:
        raise FailedPreconditionError("the stored state is not whole: its one row is missing")
    rows = {row.name: row for row in connection.execute(select(ENDPOINTS))}
    spec = decoded(state.spec, dict[str, Any], description="the spec")
    documents = {name: maybe_document(row.document, description=name) for name, row in rows.items()}
    names = decoded(state.endpoints, list[str], description="the endpoints' order")
    try:
        return DesiredState(
            generation=state.generation,
            spec=join_document(spec, documents),
            endpoints=tuple(
                decoded(rows[name].pinned, DesiredEndpoint, description=name) for name in names
            ),
            pools=decoded(state.pools, tuple[PoolSpec, ...], description="the pools"),
            streams=decoded(state.streams, tuple[DesiredStream, ...], description="the streams"),
            file=decoded(state.file, SpecFile, description="the spec file"),
        )
    except KeyError as error:
        message = f"the stored state is not whole: endpoint {error} is missing"
        raise FailedPreconditionError(message) from error


def replace_state(
    connection: Connection,
    state: DesiredState,
    *,
    timestamp: float,
    reason: str,
    actor: str,
    before: int | None = None,
) -> None:
    """Replace the state if `state` is the next generation.

    Args:
        before: The generation that must be stored now; None for the one before `state`'s.

    Raises:
        ConflictError: Another generation is stored.
        InvalidArgumentError: A record could not be read again.
    """
    spec, documents = split_document(state.spec, {endpoint.name for endpoint in state.endpoints})
    values = {
        "generation": state.generation,
        "at": timestamp,
        "spec": encoded(spec),
        "pools": encoded(state.pools),
        "streams": encoded(state.streams),
        "file": encoded(state.file),
        "endpoints": encoded([endpoint.name for endpoint in state.endpoints]),
    }
    previous = state.generation - 1 if before is None else before
    is_next = (STATE.c.id == 1) & (STATE.c.generation == previous)
    # A concurrent writer waits here, and then finds another generation.
    if connection.execute(update(STATE).where(is_next).values(values)).rowcount != 1:
        stored = connection.execute(select(STATE.c.generation)).scalar()
        message = (
            f"the desired state is at generation {stored} and cannot become "
            f"{state.generation}; read it again"
        )
        raise ConflictError(message)
    rows: Rows = [
        {
            "name": endpoint.name,
            "generation": endpoint.generation,
            "document": encoded(documents[endpoint.name]) if endpoint.name in documents else None,
            "pinned": encoded(endpoint),
        }
        for endpoint in state.endpoints
    ]
    if len({row["name"] for row in rows}) < len(rows):
        raise InvalidArgumentError("two endpoints of the state have one name")
    _replace_endpoints(
        connection, rows, {"at": timestamp, "reason": clean(reason), "actor": clean(actor)}
    )


def _replace_endpoints(connection: Connection, rows: Rows, reason: dict[str, Any]) -> None:
    stored = {row.name: row._asdict() for row in connection.execute(select(ENDPOINTS))}
    changed = [row for row in rows if row != stored.get(row["name"])]
    names = {row["name"] for row in rows}
    removed = [row for name, row in stored.items() if name not in names]
    for row in changed:
        check_readable(row["pinned"], DesiredEndpoint, description=f"endpoint '{row['name']}'")
    numbered = [
        row for row in changed if row["generation"] != stored.get(row["name"], {}).get("generation")
    ]
    # Reject generations not above those in the history, also of removed endpoints.
    newest = last_generations(connection, [row["name"] for row in numbered])
    for row in numbered:
        last = newest.get(row["name"])
        if last is not None and row["generation"] <= last:
            message = (
                f"endpoint '{row['name']}' is at generation {last} and cannot become "
                f"{row['generation']}; read its history again"
            )
            raise ConflictError(message)
    passed = [
        row | {"generation": row["generation"] + 1, "document": None, "pinned": None}
        for row in removed
    ]
    history = [
        {**reason, "endpoint": row["name"]} | {key: row[key] for key in _OF_HISTORY}
        for row in [*numbered, *passed]
    ]
    if history:
        connection.execute(insert(GENERATIONS), history)
    out = [row["name"] for row in removed] + [
        row["name"] for row in changed if row["name"] in stored
    ]
    for some in _chunks(out):
        connection.execute(delete(ENDPOINTS).where(ENDPOINTS.c.name.in_(some)))
    if changed:
        connection.execute(insert(ENDPOINTS), changed)


def last_generations(connection: Connection, names: Sequence[str] | None = None) -> dict[str, int]:
    """Return the newest generation of each endpoint that ever existed, or of `names` only.

    The next generation of an endpoint, also of a recreated one, is one higher.
    """
    table = GENERATIONS.c
    query = select(table.endpoint, func.max(table.generation)).group_by(table.endpoint)
    if names is None:
        rows: Iterable[AnyRow] = connection.execute(query)
    else:
        rows = [
            row
            for some in _chunks(names)
            for row in connection.execute(query.where(table.endpoint.in_(some)))
        ]
    return {row[0]: row[1] for row in rows}


def read_history(
    connection: Connection, endpoint: str, *, limit: int = 100
) -> list[EndpointGeneration]:
    """Return an endpoint's generations, newest first."""
    query = (
        select(GENERATIONS)
        .where(GENERATIONS.c.endpoint == clean(endpoint))
        .order_by(GENERATIONS.c.generation.desc())
        .limit(limit)
    )
    return [_generation(row) for row in connection.execute(query)]


def read_generation(
    connection: Connection, endpoint: str, generation: int
) -> EndpointGeneration | None:
    """Return one generation of an endpoint; None if it does not exist."""
    table = GENERATIONS.c
    query = select(GENERATIONS).where(
        table.endpoint == clean(endpoint), table.generation == generation
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _generation(row)


def _generation(row: AnyRow) -> EndpointGeneration:
    description = f"generation {row.generation} of {row.endpoint}"
    pinned = (
        None
        if row.pinned is None
        else decoded(row.pinned, DesiredEndpoint, description=description)
    )
    return EndpointGeneration(
        name=row.endpoint,
        generation=row.generation,
        at=row.at,
        reason=row.reason,
        actor=row.actor,
        document=maybe_document(row.document, description=description),
        endpoint=pinned,
    )


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + _SOME] for start in range(0, len(names), _SOME))


def save_rollout(
    connection: Connection,
    record: RolloutRecord,
    *,
    events: Sequence[Event] = (),
    changes: Sequence[AuditEntry] = (),
) -> RolloutRecord:
    """Add or replace a rollout, with events and audit log; return it with its revision one higher.

    Raises:
        ConflictError: `record.revision` is not the stored one (0 for a new rollout).
        InvalidArgumentError: The record could not be read again.
        FailedPreconditionError: The rollout cannot be stored; the old one stays.
    """
    stored = _save_rollout(connection, record)
    add_events(connection, events)
    add_changes(connection, changes)
    return stored


def _save_rollout(connection: Connection, record: RolloutRecord) -> RolloutRecord:
    stored = msgspec.structs.replace(record, revision=record.revision + 1)
    text = encoded(msgspec.structs.replace(stored, evidence=b""))
    check_readable(text, RolloutRecord, description=f"rollout {record.id}")
    values = {
        "endpoint": record.endpoint,
        "revision": stored.revision,
        "is_over": record.state.phase.is_over,
        "record": text,
        "evidence": record.evidence,
    }
    if record.revision == 0:
        serial = count_up(connection, "rollouts", 1)
        try:
            # A savepoint, because Postgres aborts the whole transaction after an error.
            with connection.begin_nested():
                connection.execute(insert(ROLLOUTS).values(id=record.id, serial=serial, **values))
        except IntegrityError as error:
            raise _changed(record.id, 0, None) from error
        return stored
    is_same = (ROLLOUTS.c.id == record.id) & (ROLLOUTS.c.revision == record.revision)
    if connection.execute(update(ROLLOUTS).where(is_same).values(values)).rowcount != 1:
        revision = connection.execute(
            select(ROLLOUTS.c.revision).where(ROLLOUTS.c.id == record.id)
        ).scalar()
        raise _changed(record.id, record.revision, revision)
    return stored


def _changed(rollout: str, expected: int, actual: int | None) -> ConflictError:
    if expected == 0:
        return ConflictError(f"there is a rollout {rollout} already; read it again")
    now = "is gone" if actual is None else f"is at revision {actual}"
    return ConflictError(f"rollout {rollout} {now}, not at {expected}; read it again")


def read_rollouts(
    connection: Connection, endpoint: str = "", *, limit: int = 100
) -> list[RolloutRecord]:
    """Return rollouts, newest first; of all endpoints if `endpoint` is empty."""
    query = select(ROLLOUTS).order_by(ROLLOUTS.c.serial.desc()).limit(limit)
    if endpoint:
        query = query.where(ROLLOUTS.c.endpoint == clean(endpoint))
    return [_rollout(row) for row in connection.execute(query)]


def read_rollout(connection: Connection, rollout: str) -> RolloutRecord | None:
    """Return the rollout with this id; None if it does not exist."""
    row = connection.execute(select(ROLLOUTS).where(ROLLOUTS.c.id == clean(rollout))).first()
    return None if row is None else _rollout(row)


def newest_rollouts(connection: Connection) -> dict[str, RolloutRecord]:
    """Return the newest rollout of each endpoint that had one."""
    newest = select(func.max(ROLLOUTS.c.serial)).group_by(ROLLOUTS.c.endpoint)
    rows = connection.execute(select(ROLLOUTS).where(ROLLOUTS.c.serial.in_(newest)))
    return {row.endpoint: _rollout(row) for row in rows}


def _rollout(row: AnyRow) -> RolloutRecord:
    record = decoded(row.record, RolloutRecord, description=f"rollout {row.id}")
    return msgspec.structs.replace(record, revision=row.revision, evidence=row.evidence)


def add_events(connection: Connection, events: Sequence[Event]) -> list[Event]:
    """Append events; return them with their ids."""
    if not events:
        return []
    # The counter's row is locked until the transaction ends, so ids become visible in order.
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
    connection: Connection,
    *,
    endpoint: str = "",
    kind: str = "",
    after: int = 0,
    limit: int = 1000,
    newest: bool = False,
) -> list[Event]:
    """Return events with an id above `after`, in order: the first or newest `limit` of them."""
    order = EVENTS.c.id.desc() if newest else EVENTS.c.id
    query = select(EVENTS).where(EVENTS.c.id > after).order_by(order).limit(limit)
    if endpoint:
        query = query.where(EVENTS.c.endpoint == clean(endpoint))
    if kind:
        query = query.where(EVENTS.c.kind == kind)
    events = [_event(row) for row in connection.execute(query)]
    return events[::-1] if newest else events


def _event(row: AnyRow) -> Event:
    values = row._asdict()
    values["data"] = decoded(values["data"], dict[str, Any], description=f"event {row.id}")
    return Event(**values)
