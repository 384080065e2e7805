"""Token of a home's owner, in a file that only its user can read.

The owner of a home's files also owns its state. An owner who lost the token deletes the file and
restarts the control plane.
"""

import logging
import socket
import stat
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.auth.credentials import (
    PREFIXES,
    NewCredential,
    hash_of,
    is_secret_of,
    new_credential,
    secret_id,
)
from headrace.control.auth.roles import Caller, Grant, Role
from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.state.store import Store
from headrace.core import FailedPreconditionError
from headrace.core.files import write_atomic

_LOG: Final = logging.getLogger("headrace.control")
FILE_NAME: Final = "admin-token"
OWNER: Final = "admin"
"""The service account that the token of a home authenticates."""
HOME_OWNER: Final = Caller(name=OWNER, kind="service", grants=(Grant(Role.ADMIN),))
"""The caller at the start of a control plane: the owner of its home."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_BYTES: Final = 1000


def read_home_token(home: Path) -> str:
    """Return the home owner's token; empty if the file is missing or unreadable."""
    try:
        with (home / FILE_NAME).open("rb") as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""


def ensure_home_token(
    store: Store, home: Path, *, now: float, installation: str = "", source: str = ""
) -> Path:
    """Return the file with the home owner's token, created if no valid one exists. Blocking.

    A token that other users could read is replaced. A new token revokes the old ones.

    Args:
        installation: The installation whose control planes use separate homes: the token of the
            current leader replaces those of earlier pods. Empty where the home persists and
            identifies the token.
        source: File with the token to use, as a Secret that all control planes mount; empty for a
            token that is created here. If that token was revoked, one is created too.

    Raises:
        FailedPreconditionError: The file cannot be written, or `source` has no token.
    """
    path = home / FILE_NAME
    origin = installation or f"{socket.gethostname()}:{home}"
    token = new_credential(CredentialKind.TOKEN, OWNER, now=now, grants={"home": origin})
    if source:
        token = _read_token(store, Path(source), token, now=now)
    is_current = not source or read_home_token(home) == token.text
    if is_current and _is_valid(store, path, now=now):
        return path
    _ensure_owner(store, now=now)
    if store.credential.blocking(token.credential.id) is None:
        changes = [_change("token.create", token.credential, origin, now=now)]
        store.add_credential.blocking(token.credential, changes=changes)
    try:
        write_atomic(path, f"{token.text}\n".encode())
    except OSError as error:
        message = f"cannot write the admin token to {path}: {error.strerror}"
        raise FailedPreconditionError(message) from error
    for old in store.credentials.blocking(CredentialKind.TOKEN, OWNER):
        is_previous = old.grants.get("home") == origin and old.id != token.credential.id
        if is_previous and old.is_valid(now):
            store.revoke_credential.blocking(
                old.id, revoked_at=now, changes=[_change("token.revoke", old, origin, now=now)]
            )
    return path


def _read_token(store: Store, source: Path, new: NewCredential, *, now: float) -> NewCredential:
    """Return the token of a file; `new` if that token was revoked."""
    try:
        text = source.read_text("ascii").strip()
    except (OSError, ValueError):
        text = ""
    id_ = secret_id(PREFIXES[CredentialKind.TOKEN], text)
    if id_ is None:
        message = (
            f"{source} has no token: it is hrt_ID_SECRET, with 12 of the characters a-z and 2-9 "
            "(without l and o) and 43 of A-Z, a-z, 0-9, _ and -"
        )
        raise FailedPreconditionError(message)
    stored = store.credential.blocking(id_)
    if stored is not None and not (is_secret_of(stored, text) and stored.is_valid(now)):
        message = "the token of the file was revoked; write a new one into it"
        _LOG.warning(message, extra={"path": str(source)})
        return new
    credential = msgspec.structs.replace(new.credential, id=id_, hash=hash_of(text))
    return NewCredential(credential=credential, text=text)


def _is_valid(store: Store, path: Path, *, now: float) -> bool:
    text = read_home_token(path.parent)
    id_ = secret_id(PREFIXES[CredentialKind.TOKEN], text)
    credential = None if id_ is None else store.credential.blocking(id_)
    if credential is None or not is_secret_of(credential, text) or not credential.is_valid(now):
        return False
    if path.stat().st_mode & _OTHERS:
        extra = {"path": str(path)}
        _LOG.warning("others could read the admin token; it gets replaced", extra=extra)
        return False
    return True


def _ensure_owner(store: Store, *, now: float) -> None:
    before = store.principal.blocking(OWNER)
    if before is not None and not before.disabled and "admin" in before.roles:
        return
    owner = Principal(name=OWNER, kind="service", created=now, roles=("admin",))
    if before is not None:
        roles = tuple(dict.fromkeys([*before.roles, "admin"]))
        owner = msgspec.structs.replace(before, roles=roles, disabled=False)
    change = AuditEntry(
        at=now,
        actor=OWNER,
        action="user.add" if before is None else "user.change",
        object=OWNER,
        before=None if before is None else {"roles": before.roles, "disabled": before.disabled},
        after={"roles": owner.roles, "disabled": False},
    )
    store.save_principal.blocking(owner, changes=[change])


def _change(action: str, token: Credential, origin: str, *, now: float) -> AuditEntry:
    about = {"owner": OWNER, "home": origin}
    is_new = action == "token.create"
    return AuditEntry(
        at=now,
        actor=OWNER,
        action=action,
        object=token.id,
        before=None if is_new else about,
        after=about if is_new else None,
    )
