"""Rows of credentials, principals, quotas and the audit log."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from headrace.control.model.audit_log import GENESIS, AuditEntry, Entry, Head, chained
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.model.records import QuotaUse
from headrace.control.state.database import count_up, upsert_into
from headrace.control.state.encoding import check_readable, clean, decoded, encoded
from headrace.control.state.tables import CREDENTIALS, PRINCIPALS, QUOTAS, TRAIL, AnyRow
from headrace.core import AlreadyExistsError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy.sql.dml import ReturningInsert


def add_credential(
    connection: Connection, credential: Credential, *, changes: Sequence[AuditEntry] = ()
) -> None:
    """Add a credential, and its audit log entries in the same transaction.

    Raises:
        AlreadyExistsError: Its id or hash exists.
    """
    grants = encoded(credential.grants)
    check_readable(grants, dict[str, Any], description=f"credential {credential.id}")
    values = msgspec.structs.asdict(credential) | {
        "kind": credential.kind.value,
        "owner": clean(credential.owner),
        "created_by": clean(credential.created_by),
        "grants": grants,
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(CREDENTIALS).values(values))
    except IntegrityError as error:
        raise AlreadyExistsError(f"there is a credential {credential.id} already") from error
    add_changes(connection, changes)


def read_credentials(
    connection: Connection, kind: CredentialKind, owner: str | None = None
) -> list[Credential]:
    """Return credentials of a kind by age, also invalid ones; of all owners if `owner` is None."""
    query = select(CREDENTIALS).where(CREDENTIALS.c.kind == kind.value)
    if owner is not None:
        query = query.where(CREDENTIALS.c.owner == clean(owner))
    rows = connection.execute(query.order_by(CREDENTIALS.c.created, CREDENTIALS.c.id))
    return [_credential(row) for row in rows]


def read_credential(connection: Connection, id_: str) -> Credential | None:
    """Return the credential with this id, valid or not; None if it does not exist."""
    row = connection.execute(select(CREDENTIALS).where(CREDENTIALS.c.id == clean(id_))).first()
    return None if row is None else _credential(row)


def revoke_credential(
    connection: Connection, id_: str, *, revoked_at: float, changes: Sequence[AuditEntry] = ()
) -> Credential:
    """Make a valid credential invalid from `revoked_at` on; return it as stored.

    Raises:
        NotFoundError: No credential has this id.
    """
    of_id = CREDENTIALS.c.id == clean(id_)
    connection.execute(
        update(CREDENTIALS).where(of_id, CREDENTIALS.c.revoked.is_(None)).values(revoked=revoked_at)
    )
    credential = read_credential(connection, id_)
    if credential is None:
        raise NotFoundError(f"unknown credential {id_[:100]!r}")
    add_changes(connection, changes)
    return credential


def renew_credential(connection: Connection, id_: str, *, expires: float) -> None:
    """Change the expiry of a credential that is still valid."""
    of_id = CREDENTIALS.c.id == clean(id_)
    connection.execute(
        update(CREDENTIALS).where(of_id, CREDENTIALS.c.revoked.is_(None)).values(expires=expires)
    )


def _credential(row: AnyRow) -> Credential:
    grants = decoded(row.grants, dict[str, Any], description=f"credential {row.id}")
    return Credential(**row._asdict() | {"kind": CredentialKind(row.kind), "grants": grants})


def save_principal(
    connection: Connection, principal: Principal, *, changes: Sequence[AuditEntry] = ()
) -> None:
    """Add or replace a principal, with audit log entries in the same transaction."""
    values = msgspec.structs.asdict(principal) | {
        "name": clean(principal.name),
        "roles": encoded(principal.roles),
        "created_by": clean(principal.created_by),
    }
    of_name = PRINCIPALS.c.name == values["name"]
    if not connection.execute(update(PRINCIPALS).where(of_name).values(values)).rowcount:
        connection.execute(insert(PRINCIPALS).values(values))
    add_changes(connection, changes)


def read_principals(connection: Connection) -> list[Principal]:
    """Return all principals, sorted by name."""
    rows = connection.execute(select(PRINCIPALS).order_by(PRINCIPALS.c.name))
    return [_principal(row) for row in rows]


def read_principal(connection: Connection, name: str) -> Principal | None:
    """Return the principal with this name; None if it does not exist."""
    row = connection.execute(select(PRINCIPALS).where(PRINCIPALS.c.name == clean(name))).first()
    return None if row is None else _principal(row)


def _principal(row: AnyRow) -> Principal:
    roles = decoded(row.roles, tuple[str, ...], description=f"principal {row.name}")
    return Principal(**row._asdict() | {"roles": roles})


def add_changes(connection: Connection, changes: Sequence[AuditEntry]) -> None:
    """Append to the audit log."""
    if not changes:
        return
    # The counter's row is locked until the transaction ends, so no other writer reads the same
    # head.
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


def read_trail(
    connection: Connection, *, after: int = 0, limit: int = 1000, newest: bool = False
) -> list[Entry]:
    """Return entries with an id above `after`, in order: the first or newest `limit` of them."""
    order = TRAIL.c.id.desc() if newest else TRAIL.c.id
    query = select(TRAIL).where(TRAIL.c.id > after).order_by(order).limit(limit)
    entries = [Entry(**row._asdict()) for row in connection.execute(query)]
    return entries[::-1] if newest else entries


def read_head(connection: Connection) -> Head:
    """Return the head of the audit log."""
    row = connection.execute(
        select(TRAIL.c.id, TRAIL.c.hash).order_by(TRAIL.c.id.desc()).limit(1)
    ).first()
    return Head() if row is None else Head(count=row.id, hash=row.hash)


def add_quotas(connection: Connection, uses: Sequence[QuotaUse]) -> list[QuotaUse]:
    """Add to the stored quotas; return the new values of all control planes together."""
    totals = []
    # In key order: two transactions that add to the same rows in another order would deadlock.
    for use in sorted(uses, key=lambda use: (use.day, clean(use.subject))):
        row = {"day": use.day, "subject": clean(use.subject), "used": use.used}
        used = connection.execute(_add_up(connection.dialect.name), row).scalar_one()
        totals.append(QuotaUse(day=use.day, subject=use.subject, used=used))
    return totals


def read_quotas(connection: Connection, day: str) -> list[QuotaUse]:
    """Return the quota use of a day, by subject."""
    query = select(QUOTAS.c.subject, QUOTAS.c.used).where(QUOTAS.c.day == day)
    uses = [QuotaUse(day=day, subject=s, used=used) for s, used in connection.execute(query)]
    return sorted(uses, key=lambda use: use.subject)


@cache
def _add_up(dialect: str) -> "ReturningInsert[int]":
    statement = upsert_into(QUOTAS, dialect=dialect)
    return statement.on_conflict_do_update(
        index_elements=[QUOTAS.c.day, QUOTAS.c.subject],
        set_={"used": QUOTAS.c.used + statement.excluded.used},
    ).returning(QUOTAS.c.used)
