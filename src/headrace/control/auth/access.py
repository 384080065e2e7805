"""Parts of the access control, made from the settings of authentication."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.control.app.settings import OidcSettings
from headrace.control.auth.authenticate import Authenticator
from headrace.control.auth.credentials import SessionRules
from headrace.control.auth.people import People
from headrace.control.auth.token_login import TokenLogin
from headrace.control.state.store import Store
from headrace.core import (
    Clock,
    FailedPreconditionError,
)

if TYPE_CHECKING:
    from headrace.control.auth.login import Login


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
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
) -> Access:
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
        return Access(authenticator=authenticator, people=people, token_login=token_login)
    try:
        from headrace.control.auth.login import make_login  # noqa: PLC0415  # needs an extra
    except ModuleNotFoundError as error:
        message = "logging in needs an extra; install it with pip install 'headrace[oidc]'"
        raise FailedPreconditionError(message) from error
    login = make_login(oidc, store=store, clock=clock, authenticator=authenticator)
    return Access(authenticator=authenticator, people=people, token_login=token_login, login=login)


def session_rules(oidc: OidcSettings) -> SessionRules:
    """How long sessions live, and whether browsers come by HTTPS."""
    return SessionRules(
        idle_s=oidc.session_idle_s,
        absolute_s=oidc.session_s,
        is_secure=oidc.redirect_url.startswith("https://"),
    )
