"""How are credentials and principals kept? A row each; what they may do as JSON."""

from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from headrace.control.access.credentials import Credential, CredentialKind, Principal
from headrace.control.state.encoding import check_readable, clean, decoded, encoded
from headrace.control.state.tables import CREDENTIALS, PRINCIPALS, AnyRow
from headrace.core import AlreadyExistsError, NotFoundError


def add_credential(connection: Connection, credential: Credential) -> None:
    """Keep a new credential.

    Raises:
        AlreadyExistsError: Its id or its hash is taken.
    """
    grants = encoded(credential.grants)
    check_readable(grants, dict[str, Any], what=f"credential {credential.id}")
    values = _plain_values(credential) | {"kind": credential.kind.value, "grants": grants}
    try:
        with connection.begin_nested():
            connection.execute(insert(CREDENTIALS).values(values))
    except IntegrityError as error:
        raise AlreadyExistsError(f"there is a credential {credential.id} already") from error


def _plain_values(credential: Credential) -> dict[str, Any]:
    """The columns of a credential whose value is the field's."""
    return {
        "id": credential.id,
        "owner": clean(credential.owner),
        "hash": credential.hash,
        "created": credential.created,
        "created_by": clean(credential.created_by),
        "expires": credential.expires,
        "revoked": credential.revoked,
    }


def read_credentials(
    connection: Connection, kind: CredentialKind, owner: str | None
) -> list[Credential]:
    """Credentials of a kind by age; all owners' if `owner` is None."""
    query = select(CREDENTIALS).where(CREDENTIALS.c.kind == kind.value)
    if owner is not None:
        query = query.where(CREDENTIALS.c.owner == clean(owner))
    rows = connection.execute(query.order_by(CREDENTIALS.c.created, CREDENTIALS.c.id))
    return [_credential(row) for row in rows]


def read_credential(connection: Connection, id_: str) -> Credential | None:
    """The credential of this id."""
    row = connection.execute(select(CREDENTIALS).where(CREDENTIALS.c.id == clean(id_))).first()
    return None if row is None else _credential(row)


def read_credential_by_hash(connection: Connection, hash_: str) -> Credential | None:
    """The credential of this hash."""
    query = select(CREDENTIALS).where(CREDENTIALS.c.hash == clean(hash_))
    row = connection.execute(query).first()
    return None if row is None else _credential(row)


def revoke_credential(connection: Connection, id_: str, at: float) -> Credential:
    """Make a credential invalid from `at` on, if it is not yet; as stored.

    Raises:
        NotFoundError: There is none of this id.
    """
    of_id = CREDENTIALS.c.id == clean(id_)
    connection.execute(
        update(CREDENTIALS).where(of_id, CREDENTIALS.c.revoked.is_(None)).values(revoked=at)
    )
    found = read_credential(connection, id_)
    if found is None:
        raise NotFoundError(f"there is no credential {id_[:100]!r}")
    return found


def renew_credential(connection: Connection, id_: str, expires: float) -> None:
    """Let a credential that is valid still expire at another time."""
    of_id = CREDENTIALS.c.id == clean(id_)
    connection.execute(
        update(CREDENTIALS).where(of_id, CREDENTIALS.c.revoked.is_(None)).values(expires=expires)
    )


def _credential(row: AnyRow) -> Credential:
    what = f"credential {row.id}"
    return Credential(
        id=row.id,
        kind=CredentialKind(row.kind),
        owner=row.owner,
        hash=row.hash,
        grants=decoded(row.grants, dict[str, Any], what=what),
        created=row.created,
        created_by=row.created_by,
        expires=row.expires,
        revoked=row.revoked,
    )


def save_principal(connection: Connection, principal: Principal) -> None:
    """Add a principal, or replace the one of this name."""
    values = {
        "kind": principal.kind,
        "roles": encoded(principal.roles),
        "created": principal.created,
        "created_by": clean(principal.created_by),
        "disabled": principal.disabled,
    }
    of_name = PRINCIPALS.c.name == clean(principal.name)
    if connection.execute(update(PRINCIPALS).where(of_name).values(values)).rowcount:
        return
    connection.execute(insert(PRINCIPALS).values(name=clean(principal.name), **values))


def read_principals(connection: Connection) -> list[Principal]:
    """All principals by name."""
    rows = connection.execute(select(PRINCIPALS).order_by(PRINCIPALS.c.name))
    return [_principal(row) for row in rows]


def read_principal(connection: Connection, name: str) -> Principal | None:
    """The principal of this name."""
    row = connection.execute(select(PRINCIPALS).where(PRINCIPALS.c.name == clean(name))).first()
    return None if row is None else _principal(row)


def _principal(row: AnyRow) -> Principal:
    return Principal(
        name=row.name,
        kind=row.kind,
        roles=decoded(row.roles, tuple[str, ...], what=f"principal {row.name}"),
        created=row.created,
        created_by=row.created_by,
        disabled=row.disabled,
    )
