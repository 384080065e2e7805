"""Users and service accounts with their roles, and the tokens of service accounts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headrace.control.auth.authenticate import Authenticator
from headrace.control.auth.credentials import NewCredential, new_credential
from headrace.control.auth.roles import parse_grant, parse_grants
from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.state.store import Store
from headrace.core import AlreadyExistsError, Clock, InvalidArgumentError, NotFoundError

USER: Final = "user"
SERVICE: Final = "service"
_IS_TOKEN_KIND: Final = frozenset({CredentialKind.TOKEN, CredentialKind.SESSION})


@dataclass(slots=True, kw_only=True)
class People:
    """Principals and their roles; a change is in force when its method returns."""

    store: Store
    clock: Clock
    authenticator: Authenticator

    async def add(
        self, name: str, roles: Sequence[str], *, kind: str = USER, actor: str
    ) -> Principal:
        """Add a principal.

        Raises:
            AlreadyExistsError: The name is taken.
            InvalidArgumentError: A role is unknown.
        """
        if await self.store.principal(name) is not None:
            message = f"{name} exists already; add roles with `headrace users grant`"
            raise AlreadyExistsError(message)
        added = Principal(
            name=name,
            kind=kind,
            created=self.clock.now(),
            roles=tuple(map(str, parse_grants(roles))),
            created_by=actor,
        )
        await self._save(None, added, action="user.add", actor=actor)
        return added

    async def change(
        self,
        name: str,
        *,
        grant: Sequence[str] = (),
        revoke: Sequence[str] = (),
        disabled: bool | None = None,
        actor: str,
    ) -> Principal:
        """Grant and revoke roles, disable or enable a principal; return the principal.

        Raises:
            NotFoundError: The principal does not exist.
            InvalidArgumentError: A role is unknown.
        """
        before = await self.store.principal(name)
        if before is None:
            raise NotFoundError(f"unknown user {name[:100]!r}; `headrace users list` lists them")
        taken = {str(parse_grant(role)) for role in revoke}
        granted = [*before.roles, *map(str, parse_grants(grant))]
        roles = tuple(dict.fromkeys(role for role in granted if role not in taken))
        is_disabled = before.disabled if disabled is None else disabled
        after = msgspec.structs.replace(before, roles=roles, disabled=is_disabled)
        if after != before:
            await self._save(before, after, action="user.change", actor=actor)
        return after

    async def create_token(
        self, owner: str, *, roles: Sequence[str] = (), expires_in_s: float | None, actor: str
    ) -> NewCredential:
        """Create a token for a service account, which is created if needed.

        Args:
            roles: Roles of a new account.
            expires_in_s: None for a token that does not expire.

        Raises:
            InvalidArgumentError: A role is unknown or missing, or the account has other roles.
        """
        account = await self.store.principal(owner)
        requested = tuple(map(str, parse_grants(roles)))
        if account is None and not requested:
            message = f"account {owner} does not exist; give the roles to create it with"
            raise InvalidArgumentError(message)
        if account is None:
            await self.add(owner, requested, kind=SERVICE, actor=actor)
        elif requested and set(requested) != set(account.roles):
            has = ", ".join(account.roles) or "no role"
            message = f"{owner} has {has} already; change that with `headrace users grant`"
            raise InvalidArgumentError(message)
        now = self.clock.now()
        expires = None if expires_in_s is None else now + expires_in_s
        created = new_credential(CredentialKind.TOKEN, owner, now=now, by=actor, expires=expires)
        token, after = created.credential, {"owner": owner, "expires": expires}
        change = AuditEntry(
            at=now, actor=actor, action="token.create", object=token.id, after=after
        )
        await self.store.add_credential(token, changes=[change])
        return created

    async def revoke(self, id_: str, *, actor: str) -> Credential:
        """Revoke a token or a session immediately; return it.

        Raises:
            NotFoundError: No token or session has this id.
        """
        store, now = self.store, self.clock.now()
        credential = await store.credential(id_)
        if credential is None or credential.kind not in _IS_TOKEN_KIND:
            raise NotFoundError(f"unknown token {id_[:100]!r}; `headrace tokens list` lists them")
        if credential.revoked is not None:
            return credential
        change = AuditEntry(
            at=now,
            actor=actor,
            action=f"{credential.kind}.revoke",
            object=id_,
            before={"owner": credential.owner, "expires": credential.expires},
        )
        revoked = await store.revoke_credential(id_, revoked_at=now, changes=[change])
        self.authenticator.credentials.forget()
        return revoked

    async def _save(
        self, before: Principal | None, after: Principal, *, action: str, actor: str
    ) -> None:
        change = AuditEntry(
            at=self.clock.now(),
            actor=actor,
            action=action,
            object=after.name,
            before=None if before is None else _audit_facts(before),
            after=_audit_facts(after),
        )
        await self.store.save_principal(after, changes=[change])
        self.authenticator.credentials.forget()


def _audit_facts(principal: Principal) -> dict[str, Any]:
    return {
        "kind": principal.kind,
        "roles": list(principal.roles),
        "disabled": principal.disabled,
    }
