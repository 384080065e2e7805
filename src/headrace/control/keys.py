"""Who has an API key? Made, listed and revoked; the gateway acts on it when a call returns."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headrace.control.access.credentials import (
    Credential,
    CredentialKind,
    NewCredential,
    hash_of,
    new_secret,
)
from headrace.control.access.trail import Change
from headrace.control.state.store import Store
from headrace.core import Clock, InvalidArgumentError, NotFoundError
from headrace.gateway import ApiKey

PREFIX: Final = "hr"
EVERYTHING: Final = "infer:*"


class KeyGrants(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be known of a key: what it may call, and its tier; empty for none."""

    scopes: tuple[str, ...]
    tier: str = ""


@dataclass(slots=True, kw_only=True)
class Keys:
    """Reads and changes API keys. `apply` brings what is stored into force at the gateway."""

    store: Store
    clock: Clock
    apply: Callable[[], Awaitable[None]]

    async def all(self) -> list[Credential]:
        """All keys by age, those that are not valid any more included."""
        return await self.store.credentials(CredentialKind.KEY)

    async def find(self, text: str, may_see: Callable[[Credential], bool]) -> Credential:
        """The key of this id, or the one valid key of this name.

        Args:
            may_see: Whether the caller sees a key; others are as if they were not there.

        Raises:
            NotFoundError: There is none.
            InvalidArgumentError: Several have the name.
        """
        found = [key for key in await self.all() if may_see(key)]
        by_id = [key for key in found if key.id == text]
        named = [k for k in found if k.owner == text and k.is_valid(self.clock.now())]
        if len(named) > 1 and not by_id:
            ids = ", ".join(key.id for key in named)
            message = f"several keys are called '{text}'; name one by its id: {ids}"
            raise InvalidArgumentError(message)
        if not by_id and not named:
            message = f"there is no API key '{text[:100]}'; `headrace keys list` shows them"
            raise NotFoundError(message)
        return (by_id or named)[0]

    async def create(
        self, name: str, grants: KeyGrants, *, expires_in_s: float | None, actor: str
    ) -> NewCredential:
        """A key that the gateway takes from now on.

        Args:
            name: How callers with it are named, to replicas and in logs.
            expires_in_s: None for one that does not expire.

        Raises:
            HeadraceError: It is stored, but the gateway does not know it yet.
        """
        now = self.clock.now()
        id_, text = new_secret(PREFIX)
        key = Credential(
            id=id_,
            kind=CredentialKind.KEY,
            owner=name,
            hash=hash_of(text),
            created=now,
            created_by=actor,
            grants=msgspec.to_builtins(grants),
            expires=None if expires_in_s is None else now + expires_in_s,
        )
        after = {"name": name, "expires": key.expires, **key.grants}
        change = Change(at=now, actor=actor, action="key.create", object=id_, after=after)
        await self.store.add_credential(key, changes=[change])
        await self.apply()
        return NewCredential(credential=key, text=text)

    async def revoke(self, key: Credential, *, actor: str) -> Credential:
        """Have the gateway refuse a key from now on; as it is now.

        Raises:
            HeadraceError: It is void, but the gateway could not be told yet.
        """
        now = self.clock.now()
        before = {"name": key.owner, "revoked": key.revoked}
        change = Change(at=now, actor=actor, action="key.revoke", object=key.id, before=before)
        revoked = await self.store.revoke_credential(key.id, at=now, changes=[change])
        await self.apply()
        return revoked


def grants_of(key: Credential) -> KeyGrants:
    """What a stored key may do; what cannot be read grants nothing."""
    try:
        return msgspec.convert(key.grants, type=KeyGrants)
    except msgspec.ValidationError:
        return KeyGrants(scopes=())


def known_keys(credentials: Sequence[Credential], now: float) -> tuple[ApiKey, ...]:
    """The keys that a gateway takes now, in the order of their ids."""
    valid = (key for key in credentials if key.is_valid(now))
    return tuple(sorted((_told(key) for key in valid), key=lambda key: key.id))


def endpoint_of(scope: str) -> str | None:
    """The endpoint that a scope is about; None for all of them."""
    name: Any = scope.split(":")[1]
    return None if name == "*" else str(name)


def _told(key: Credential) -> ApiKey:
    grants = grants_of(key)
    return ApiKey(
        id=key.id,
        name=key.owner,
        digest=key.hash,
        scopes=grants.scopes,
        tier=grants.tier,
        expires_at=key.expires,
    )
