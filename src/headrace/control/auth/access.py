"""Access control built from settings, and logins with a token.

The browser does not store the token of a login. The session lives at most as long as the token:
when the token is revoked or expires, the session becomes invalid.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.control.auth.authenticate import Authenticator
from headrace.control.auth.credentials import SessionRules
from headrace.control.auth.people import People
from headrace.control.auth.roles import Caller
from headrace.control.base.settings import OidcSettings
from headrace.control.model.audit_log import AuditEntry
from headrace.control.state.store import Store
from headrace.core import (
    Clock,
    FailedPreconditionError,
)

if TYPE_CHECKING:
    from headrace.control.auth.login import Login

_LOG: Final = logging.getLogger("headrace.control")


@dataclass(slots=True, kw_only=True)
class TokenLogin:
    """Begins sessions for callers that present a token, and ends sessions."""

    store: Store
    clock: Clock
    authenticator: Authenticator

    @property
    def rules(self) -> SessionRules:
        """Return the lifetimes of sessions and the attributes of their cookies."""
        return self.authenticator.rules

    async def begin(self, token: str, address: str) -> str:
        """Begin a session; return the header that sets its cookie.

        Args:
            token: As in `Authorization: Bearer`.
            address: The client's address.

        Raises:
            UnauthenticatedError: The token is invalid.
            OverloadedError: Too many attempts from this address failed.
        """
        caller = await self.authenticator.caller({"authorization": f"Bearer {token}"}, address)
        now = self.clock.now()
        created = self.rules.begin(
            caller.name, (), now=now, by=caller.credential, token=caller.credential
        )
        change = AuditEntry(
            at=now,
            actor=caller.name,
            action="login",
            object=created.credential.id,
            after={"token": caller.credential},
        )
        await self.store.add_credential(created.credential, changes=[change])
        _LOG.info("logged in", extra={"user": caller.name})
        rules = self.rules
        return rules.set_cookie(rules.cookie_name, created.text, max_age_s=rules.absolute_s)

    async def end(self, caller: Caller) -> str:
        """End the caller's session; return the header that removes its cookie."""
        now = self.clock.now()
        change = AuditEntry(at=now, actor=caller.name, action="logout", object=caller.credential)
        await self.store.revoke_credential(caller.credential, revoked_at=now, changes=[change])
        self.authenticator.credentials.forget(caller.credential)
        return self.rules.set_cookie(self.rules.cookie_name, "", max_age_s=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessControl:
    """Authentication and authorization of callers; `login` is None without an identity provider."""

    authenticator: Authenticator
    people: People
    token_login: TokenLogin
    login: "Login | None" = None


def make_access(
    store: Store,
    clock: Clock,
    oidc: OidcSettings | None = None,
    *,
    is_encrypted: bool = False,
) -> AccessControl:
    """Return the access control over one store.

    Args:
        is_encrypted: Whether the management API uses TLS; read only without `oidc`.

    Raises:
        FailedPreconditionError: The extra for OpenID Connect is missing.
    """
    rules = SessionRules(is_secure=is_encrypted) if oidc is None else session_rules(oidc)
    authenticator = Authenticator(store=store, clock=clock, rules=rules)
    people = People(store=store, clock=clock, authenticator=authenticator)
    token_login = TokenLogin(store=store, clock=clock, authenticator=authenticator)
    if oidc is None:
        return AccessControl(authenticator=authenticator, people=people, token_login=token_login)
    try:
        from headrace.control.auth.login import make_login  # noqa: PLC0415  # needs an extra
    except ModuleNotFoundError as error:
        message = "logging in needs an extra; install it with pip install 'headrace[oidc]'"
        raise FailedPreconditionError(message) from error
    login = make_login(oidc, store=store, clock=clock, authenticator=authenticator)
    return AccessControl(
        authenticator=authenticator, people=people, token_login=token_login, login=login
    )


def session_rules(oidc: OidcSettings) -> SessionRules:
    """Return the lifetimes of sessions, and whether browsers use HTTPS."""
    return SessionRules(
        idle_s=oidc.session_idle_s,
        absolute_s=oidc.session_s,
        is_secure=oidc.redirect_url.startswith("https://"),
    )
