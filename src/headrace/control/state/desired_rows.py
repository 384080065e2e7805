"""How is the desired state read and replaced? In rows: only what changed is written."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from headrace.control.desired import (
    DesiredEndpoint,
    DesiredPool,
    DesiredState,
    DesiredStream,
)
from headrace.control.state.documents import put_together, take_apart
from headrace.control.state.encoding import check_readable, clean, decoded, encoded, maybe_document
from headrace.control.state.tables import ENDPOINTS, GENERATIONS, STATE, AnyRow
from headrace.control.store import EndpointGeneration
from headrace.core import ConflictError, FailedPreconditionError, InvalidArgumentError

Rows = list[dict[str, Any]]
_SOME: Final = 500
"""How many names one statement asks for; SQLite allows 32,766 parameters, older ones 999."""


def load_state(connection: Connection) -> DesiredState:
    """The newest state; generation 0 if none was saved."""
    state = connection.execute(select(STATE)).one_or_none()
    if state is None:
        raise FailedPreconditionError("the stored state is not whole: its one row is missing")
    found = {row.name: row for row in connection.execute(select(ENDPOINTS))}
    spec = decoded(state.spec, dict[str, Any], what="the spec")
    documents = {name: maybe_document(row.document, what=name) for name, row in found.items()}
    names = decoded(state.endpoints, list[str], what="the endpoints' order")
    try:
        return DesiredState(
            generation=state.generation,
            spec=put_together(spec, documents),
            endpoints=tuple(
                decoded(found[name].pinned, DesiredEndpoint, what=name) for name in names
            ),
            pools=decoded(state.pools, tuple[DesiredPool, ...], what="the pools"),
            streams=decoded(state.streams, tuple[DesiredStream, ...], what="the streams"),
        )
    except KeyError as error:
        message = f"the stored state is not whole: endpoint {error} is missing"
        raise FailedPreconditionError(message) from error


def save_state(
    connection: Connection,
    state: DesiredState,
    *,
    at: float,
    reason: str,
    actor: str,
    before: int | None = None,
) -> None:
    """Replace the state, if it is the next one.

    Args:
        before: The generation that has to be stored; None for the one before `state`'s.

    Raises:
        ConflictError: It is not.
        InvalidArgumentError: It could not be read again.
    """
    spec, documents = take_apart(state.spec, {endpoint.name for endpoint in state.endpoints})
    _replace_generation(
        connection,
        before=state.generation - 1 if before is None else before,
        generation=state.generation,
        at=at,
        spec=encoded(spec),
        pools=encoded(state.pools),
        streams=encoded(state.streams),
        endpoints=encoded([endpoint.name for endpoint in state.endpoints]),
    )
    wanted = [_endpoint_row(endpoint, documents.get(endpoint.name)) for endpoint in state.endpoints]
    if len({row["name"] for row in wanted}) < len(wanted):
        raise InvalidArgumentError("two endpoints of the state have one name")
    _replace_endpoints(
        connection, wanted, {"at": at, "reason": clean(reason), "actor": clean(actor)}
    )


def _replace_generation(
    connection: Connection, *, before: int, generation: int, **values: object
) -> None:
    is_next = (STATE.c.id == 1) & (STATE.c.generation == before)
    # Whoever else saves at this moment waits here, and then finds another generation.
    if (
        connection.execute(
            update(STATE).where(is_next).values(generation=generation, **values)
        ).rowcount
        != 1
    ):
        stored = connection.execute(select(STATE.c.generation)).scalar()
        message = (
            f"the desired state is at generation {stored} and cannot become "
            f"{generation}; read it again"
        )
        raise ConflictError(message)


def _endpoint_row(endpoint: DesiredEndpoint, document: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "generation": endpoint.generation,
        "document": None if document is None else encoded(document),
        "pinned": encoded(endpoint),
    }


def _replace_endpoints(connection: Connection, wanted: Rows, why: dict[str, Any]) -> None:
    stored = {row.name: row._asdict() for row in connection.execute(select(ENDPOINTS))}
    changed = [row for row in wanted if row != stored.get(row["name"])]
    names = {row["name"] for row in wanted}
    gone = [row for name, row in stored.items() if name not in names]
    for row in changed:
        check_readable(row["pinned"], DesiredEndpoint, what=f"endpoint '{row['name']}'")
    numbered = [
        row for row in changed if row["generation"] != stored.get(row["name"], {}).get("generation")
    ]
    _check_numbers(connection, numbered)
    history = [
        {**why, **_history_row(row["name"], row["generation"], row["document"], row["pinned"])}
        for row in numbered
    ]
    history += [{**why, **_history_row(row["name"], row["generation"] + 1)} for row in gone]
    if history:
        connection.execute(insert(GENERATIONS), history)
    out = [row["name"] for row in gone] + [row["name"] for row in changed if row["name"] in stored]
    for some in _chunks(out):
        connection.execute(delete(ENDPOINTS).where(ENDPOINTS.c.name.in_(some)))
    if changed:
        connection.execute(insert(ENDPOINTS), changed)


def _history_row(
    endpoint: str, generation: int, document: str | None = None, pinned: str | None = None
) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "generation": generation,
        "document": document,
        "pinned": pinned,
    }


def _check_numbers(connection: Connection, rows: Rows) -> None:
    """Refuse generations that the history has passed, those of endpoints that went included."""
    newest = last_generations(connection, [row["name"] for row in rows])
    for row in rows:
        last = newest.get(row["name"])
        if last is not None and row["generation"] <= last:
            message = (
                f"endpoint '{row['name']}' is at generation {last} and cannot become "
                f"{row['generation']}; read its history again"
            )
            raise ConflictError(message)


def last_generations(connection: Connection, names: Sequence[str] | None = None) -> dict[str, int]:
    """The newest generation of each endpoint that ever was; of `names` only, if they are given."""
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


def read_history(connection: Connection, endpoint: str, limit: int) -> list[EndpointGeneration]:
    """An endpoint's generations, the newest first."""
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
    """One generation of an endpoint."""
    table = GENERATIONS.c
    query = select(GENERATIONS).where(
        table.endpoint == clean(endpoint), table.generation == generation
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _generation(row)


def _generation(row: AnyRow) -> EndpointGeneration:
    what = f"generation {row.generation} of {row.endpoint}"
    pinned = None if row.pinned is None else decoded(row.pinned, DesiredEndpoint, what=what)
    return EndpointGeneration(
        name=row.endpoint,
        generation=row.generation,
        at=row.at,
        reason=row.reason,
        actor=row.actor,
        document=maybe_document(row.document, what=what),
        endpoint=pinned,
    )


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + _SOME] for start in range(0, len(names), _SOME))
