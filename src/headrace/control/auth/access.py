"""Parts of the access control, made from settings; logins with a token.

The token of a login does not stay in the browser. The session lives at most as long as the token:
when that is revoked or expires, the session is not valid any more.
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
    """Begins sessions for whoever shows a token, and ends any session."""

    store: Store
    clock: Clock
    authenticator: Authenticator

    @property
    def rules(self) -> SessionRules:
        """How long sessions live, and how their cookies look."""
        return self.authenticator.rules

    async def begin(self, token: str, address: str) -> str:
        """The header that sets the cookie of a new session.

        Args:
            token: As `Authorization: Bearer` has it.
            address: Where it comes from.

        Raises:
            UnauthenticatedError: It is no valid token.
            OverloadedError: Too many have failed from there.
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
        """End the caller's session; the header that removes its cookie."""
        now = self.clock.now()
        change = AuditEntry(at=now, actor=caller.name, action="logout", object=caller.credential)
        await self.store.revoke_credential(caller.credential, revoked_at=now, changes=[change])
        self.authenticator.credentials.forget(caller.credential)
        return self.rules.set_cookie(self.rules.cookie_name, "", max_age_s=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessControl:
    """Who is let in; `login` None where there is no identity provider."""

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
    """The parts over one store.

    Args:
        is_encrypted: Whether the management API is, where there is no `oidc` to tell.

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
    """How long sessions live, and whether browsers come by HTTPS."""
    return SessionRules(
        idle_s=oidc.session_idle_s,
        absolute_s=oidc.session_s,
        is_secure=oidc.redirect_url.startswith("https://"),
    )
