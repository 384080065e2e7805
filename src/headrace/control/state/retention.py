"""What is forgotten, so that the state stays small? The oldest, beyond these bounds."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, select

from headrace.control.access.credentials import CredentialKind
from headrace.control.state.tables import (
    ANSWERS,
    CREDENTIALS,
    EVENTS,
    GENERATIONS,
    QUOTAS,
    ROLLOUT_UNITS,
    ROLLOUTS,
    SILENCES,
    UNIT_REWARDS,
    UNIT_TALLIES,
)

_OF_UNITS: Final = (UNIT_REWARDS, ROLLOUT_UNITS, UNIT_TALLIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many of each are kept per endpoint; a rollout that is under way is always kept."""

    events: int = 10_000
    generations: int = 1_000
    rollouts: int = 200


def forget(connection: Connection, bounds: Bounds, *, before: float) -> None:
    """Drop answers, quotas and silences of before `before`, and what is beyond bounds.

    Rewards by unit stay while their rollout is under way or its endpoint's newest; then the last
    verdict is what is left of them.
    """
    connection.execute(delete(ANSWERS).where(ANSWERS.c.at < before))
    first_day = datetime.fromtimestamp(before, UTC).date().isoformat()
    connection.execute(delete(QUOTAS).where(QUOTAS.c.day < first_day))
    connection.execute(delete(SILENCES).where(SILENCES.c.ends < before))
    is_session = CREDENTIALS.c.kind == CredentialKind.SESSION.value
    connection.execute(delete(CREDENTIALS).where(is_session, CREDENTIALS.c.expires < before))
    _keep_newest(connection, EVENTS, "id", bounds.events)
    _keep_newest(connection, GENERATIONS, "generation", bounds.generations)
    newest = select(func.max(ROLLOUTS.c.serial)).group_by(ROLLOUTS.c.endpoint)
    past = select(ROLLOUTS.c.id).where(ROLLOUTS.c.is_over, ROLLOUTS.c.serial.not_in(newest))
    for table in _OF_UNITS:
        connection.execute(delete(table).where(table.c.rollout.in_(past)))
    if _keep_newest(connection, ROLLOUTS, "serial", bounds.rollouts, ROLLOUTS.c.is_over):
        _forget_lost(connection)


def _forget_lost(connection: Connection) -> None:
    """Drop what belongs to no rollout any more, and answers that feedback could still add to it."""
    known = select(ROLLOUTS.c.id)
    connection.execute(delete(ANSWERS).where(ANSWERS.c.rollout.not_in(known)))
    for table in _OF_UNITS:
        connection.execute(delete(table).where(table.c.rollout.not_in(known)))


def _keep_newest(
    connection: Connection,
    table: Table,
    order: str,
    bound: int,
    only: ColumnElement[bool] | None = None,
) -> int:
    """Keep the `bound` highest by `order` of each endpoint; how many rows went."""
    number = table.c[order]
    many = select(table.c.endpoint).group_by(table.c.endpoint).having(func.count() > bound)
    gone = 0
    for (endpoint,) in connection.execute(many).all():
        is_its = table.c.endpoint == endpoint
        last = select(number).where(is_its).order_by(number.desc()).offset(bound).limit(1)
        is_old = and_(is_its, number <= last.scalar_subquery())
        where = is_old if only is None else and_(is_old, only)
        gone += connection.execute(delete(table).where(where)).rowcount
    return gone
