"""Store of the control plane's state; every method is one transaction of SQLite or Postgres.

The functions passed to `reads` and `writes` contain the SQL, and document arguments and errors.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, select

from headrace.control.model.credentials import CredentialKind
from headrace.control.state import access_rows, desired_rows, reward_rows, token_rows
from headrace.control.state.alert_rows import AlertStore
from headrace.control.state.database import Database, reads, writes
from headrace.control.state.job_rows import JobStore
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
    """Most records of each kind kept per endpoint; a running rollout is always kept."""

    events: int = 10_000
    generations: int = 1_000
    rollouts: int = 200


_BOUNDS: Final = Bounds()


def forget(connection: Connection, before: float, *, bounds: Bounds = _BOUNDS) -> None:
    """Delete sessions, answers, quotas and silences ended before `before`, and surplus records.

    Rewards by unit stay while their rollout runs or is its endpoint's newest; afterwards only the
    last verdict remains.
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
        # Units of deleted rollouts, and answers whose feedback would still count for them.
        rollout_ids = select(ROLLOUTS.c.id)
        connection.execute(delete(ANSWERS).where(ANSWERS.c.rollout.not_in(rollout_ids)))
        for table in _OF_UNITS:
            connection.execute(delete(table).where(table.c.rollout.not_in(rollout_ids)))


def _keep_newest(
    connection: Connection,
    table: Table,
    order: str,
    bound: int,
    only: ColumnElement[bool] | None = None,
) -> int:
    """Keep each endpoint's `bound` rows highest by `order`; return the number of deleted rows."""
    number = table.c[order]
    many = select(table.c.endpoint).group_by(table.c.endpoint).having(func.count() > bound)
    removed = 0
    for (endpoint,) in connection.execute(many).all():
        is_its = table.c.endpoint == endpoint
        last = select(number).where(is_its).order_by(number.desc()).offset(bound).limit(1)
        is_old = and_(is_its, number <= last.scalar_subquery())
        location = is_old if only is None else and_(is_old, only)
        removed += connection.execute(delete(table).where(location)).rowcount
    return removed


class Store:
    """Stored state: desired state, history, rollouts, events, rewards and access.

    Opened by `open_store`. Every transaction is atomic, also between processes. A call is awaited
    and runs in the database's single thread; `store.load.blocking()` runs in the calling thread.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.jobs = JobStore(database)
        self.alerts = AlertStore(database)

    load = reads("read the desired state", desired_rows.load_state)
    save = writes("store the desired state", desired_rows.save)
    history = reads("read the history", desired_rows.read_history)
    generation = reads("read the history", desired_rows.read_generation)
    last_generations = reads("read the history", desired_rows.last_generations)

    rollouts = reads("read the rollouts", desired_rows.read_rollouts)
    rollout = reads("read a rollout", desired_rows.read_rollout)
    newest_rollouts = reads("read the rollouts", desired_rows.newest_rollouts)
    save_rollout = writes("store a rollout", desired_rows.save_rollout)
    add_events = writes("store events", desired_rows.add_events)
    events = reads("read events", desired_rows.read_events)

    add_assignments = writes("store assignments", reward_rows.add_assignments)
    add_feedback = writes("store feedback", reward_rows.add_feedback)
    rewards = reads("read rewards", reward_rows.read_rewards)
    reward_sums = reads("read rewards", reward_rows.read_reward_sums)
    unit_tally = reads("read callers", reward_rows.read_tally)
    add_units = writes("store callers", reward_rows.add_units)

    add_credential = writes("store a credential", access_rows.add_credential)
    credentials = reads("read credentials", access_rows.read_credentials)
    credential = reads("read a credential", access_rows.read_credential)
    revoke_credential = writes("revoke a credential", access_rows.revoke_credential)
    renew_credential = writes("renew a credential", access_rows.renew_credential)
    save_principal = writes("store a principal", access_rows.save_principal)
    principals = reads("read principals", access_rows.read_principals)
    principal = reads("read a principal", access_rows.read_principal)
    add_changes = writes("write the trail", access_rows.add_changes)
    trail = reads("read the trail", access_rows.read_trail)
    trail_head = reads("read the trail", access_rows.read_head)
    add_quotas = writes("store used quotas", access_rows.add_quotas)
    quotas = reads("read used quotas", access_rows.read_quotas)
    add_tokens = writes("store used tokens", token_rows.add_tokens)
    tokens = reads("read used tokens", token_rows.read_tokens)
    forget_token_readings = writes("forget gateways", token_rows.forget_readings)
    token_reading = reads("read used tokens", token_rows.read_reading)

    forget_before = writes("forget old entries", forget)

    def close(self) -> None:
        """Finish the queued transactions, and close the database."""
        self.database.close()
