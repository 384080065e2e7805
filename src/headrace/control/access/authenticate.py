"""Who asks? By the token or the session's cookie that a request shows."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from headrace.control.access.brake import Brake, network_of
from headrace.control.access.credentials import (
    Credential,
    CredentialKind,
    Principal,
    is_secret_of,
    secret_id,
)
from headrace.control.access.failures import Noted
from headrace.control.access.known import KnownCredentials
from headrace.control.access.roles import Caller, parse_grants
from headrace.control.access.sessions import (
    PREFIX,
    TOKEN,
    SessionRules,
    cookie_value,
    csrf_token,
)
from headrace.control.access.trail import Change
from headrace.control.state.store import Store
from headrace.core import Clock, HeadraceError, OverloadedError, UnauthenticatedError

_LOG: Final = logging.getLogger("headrace.control")
TOKEN_PREFIX: Final = "hrt"  # noqa: S105  # begins every token, and is none
_BEARER: Final = "bearer"
_WANTED: Final = (
    "the management API wants a token: send `authorization: Bearer hrt_...`; on the machine itself "
    "`headrace token show` has one"
)


@dataclass(slots=True, kw_only=True)
class Authenticator:
    """Tells who asks, and slows whoever guesses."""

    store: Store
    clock: Clock
    rules: SessionRules = field(default_factory=SessionRules)
    brake: Brake = field(default_factory=Brake)
    noted: Noted = field(default_factory=Noted)
    known: KnownCredentials = field(init=False)

    def __post_init__(self) -> None:
        self.known = KnownCredentials(store=self.store, clock=self.clock)

    async def caller(
        self, headers: Mapping[str, str], address: str, *, renews: bool = True
    ) -> Caller:
        """Whoever a request shows to be.

        Args:
            headers: By lower-case name.
            address: Where it comes from.
            renews: Whether this is something that a session does, so that it is not idle.

        Raises:
            UnauthenticatedError: Nobody, or nobody any more.
            OverloadedError: Too many have failed from there.
            UnavailableError: The store cannot be read.
        """
        given = headers.get("authorization")
        cookie = cookie_value(headers.get("cookie", ""), self.rules.cookie_name)
        if given is not None:
            scheme, _, text = given.strip().partition(" ")
            if scheme.lower() != _BEARER:
                raise UnauthenticatedError(_WANTED)
            return await self._by_token(text.strip(), network_of(address))
        if cookie:
            return await self._by_session(cookie, network_of(address), renews=renews)
        raise UnauthenticatedError(_WANTED)

    async def _by_token(self, text: str, network: str) -> Caller:
        credential, principal = await self._checked(
            text, CredentialKind.TOKEN, secret_id(TOKEN_PREFIX, text), network
        )
        return Caller(
            name=credential.owner,
            kind=principal.kind,
            grants=parse_grants(principal.roles),
            credential=credential.id,
        )

    async def _by_session(self, text: str, network: str, *, renews: bool) -> Caller:
        credential, principal = await self._checked(
            text, CredentialKind.SESSION, secret_id(PREFIX, text), network
        )
        await self._check_token(str(credential.grants.get(TOKEN, "")))
        expires = self.rules.renewed(credential, self.clock.now()) if renews else None
        if expires is not None:
            await self._renew(credential, expires)
        roles = [str(role) for role in credential.grants.get("roles", ())]
        return Caller(
            name=credential.owner,
            kind=principal.kind,
            grants=parse_grants([*principal.roles, *roles]),
            credential=credential.id,
            csrf_token=csrf_token(text),
        )

    async def _check_token(self, id_: str) -> None:
        """Refuse a session whose token is not valid any more."""
        found = await self.known.find(id_) if id_ else None
        if id_ and (found is None or not found[0].is_valid(self.clock.now())):
            raise UnauthenticatedError("the token that this session began with is not valid now")

    async def _checked(
        self, text: str, kind: CredentialKind, id_: str | None, network: str
    ) -> tuple[Credential, Principal]:
        now = self.clock.monotonic()
        found = None if id_ is None else await self.known.find(id_)
        if found is None or found[0].kind is not kind:
            raise await self._failed(network, network, f"there is no such {kind.value}")
        credential, principal = found
        key = f"{network} {credential.id}"
        self._check_brake(key, now)
        if not is_secret_of(credential, text):
            raise await self._failed(key, network, f"there is no such {kind.value}")
        if not credential.is_valid(self.clock.now()):
            word = "expired" if credential.revoked is None else "revoked"
            raise UnauthenticatedError(f"the {kind.value} is {word}; ask an admin for another")
        if principal is None or principal.disabled:
            raise UnauthenticatedError(f"{credential.owner} is disabled; ask an admin")
        return credential, principal

    def _check_brake(self, key: str, now: float) -> None:
        wait_s = self.brake.wait_s(key, now)
        if wait_s > 0:
            raise OverloadedError("too many attempts have failed", retry_after_s=wait_s)

    async def _failed(self, key: str, network: str, reason: str) -> HeadraceError:
        """Count a failure; what the caller is told."""
        now = self.clock.monotonic()
        self._check_brake(key, now)
        if self.brake.fail(key, now):
            await self.note_failure(network, f"{reason} ({key.rpartition(' ')[2]})")
        return UnauthenticatedError(f"{reason}; `headrace token show` has the one of a home")

    async def note_failure(self, network: str, reason: str) -> None:
        """Enter a failed attempt in the log and in the trail, if there are not too many."""
        _LOG.warning("refused a caller", extra={"address": network, "reason": reason})
        if not self.noted.take(self.clock.monotonic()):
            return
        change = Change(
            at=self.clock.now(),
            actor="",
            action="login.failed",
            object=network,
            after={"reason": reason},
        )
        with _quietly():
            await self.store.add_changes([change])

    async def _renew(self, credential: Credential, expires: float) -> None:
        with _quietly():
            await self.store.renew_credential(credential.id, expires=expires)
        self.known.forget(credential.id)


@contextmanager
def _quietly() -> Iterator[None]:
    """What is written in it no request may fail for."""
    try:
        yield
    except HeadraceError as error:
        _LOG.warning("cannot write who came in", extra={"error": str(error)})
