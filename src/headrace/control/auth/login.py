"""Browser login through an OpenID provider."""

import base64
import hashlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from headrace.control.auth.authenticate import Authenticator, network_of
from headrace.control.auth.credentials import SessionRules, is_own_page
from headrace.control.auth.people import USER
from headrace.control.auth.provider import Claims, Provider, check_url
from headrace.control.auth.roles import parse_grant
from headrace.control.base.settings import OidcSettings, is_reference, secret_reader
from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.credentials import Principal
from headrace.control.state.store import Store
from headrace.core import (
    Clock,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    PermissionDeniedError,
)

CALLBACK: Final = "/auth/callback"
START_PAGE: Final = "/"
_LOG: Final = logging.getLogger("headrace.control")
_LOGIN_S: Final = 600.0
_MAX_TEXT: Final = 200
_MAX_GROUPS: Final = 1000


class _LoginState(msgspec.Struct, frozen=True):
    """Content of the cookie of a browser that was sent to the provider."""

    state: str
    nonce: str
    verifier: str
    page: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Location that a browser is redirected to, and the cookies that it gets."""

    location: str
    cookies: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Login:
    """Logs in people whom the identity provider authenticates and who have a role here."""

    settings: OidcSettings
    provider: Provider
    store: Store
    clock: Clock
    authenticator: Authenticator
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def rules(self) -> SessionRules:
        """Return the lifetimes of sessions and the attributes of their cookies."""
        return self.authenticator.rules

    async def begin(self, page: str) -> Redirect:
        """Return the redirect of a browser to the provider.

        Args:
            page: The path to which the browser returns after the login.

        Raises:
            UnavailableError: The provider does not answer.
        """
        away = _LoginState(
            state=secrets.token_urlsafe(24),
            nonce=secrets.token_urlsafe(24),
            verifier=secrets.token_urlsafe(48),
            page=page if is_own_page(page) else START_PAGE,
            until=self.clock.now() + _LOGIN_S,
        )
        url = await self.provider.login_url(
            state=away.state, nonce=away.nonce, verifier=away.verifier
        )
        name = self.rules.login_cookie_name
        cookie = self.rules.set_cookie(name, self._signed(away), max_age_s=_LOGIN_S)
        return Redirect(location=url, cookies=(cookie,))

    async def finish(self, *, cookie: str, state: str, code: str, address: str) -> Redirect:
        """Return the redirect of a browser that comes back from the provider, with a new session.

        Raises:
            PermissionDeniedError: The login did not begin here, or the person has no role.
            UnavailableError: The provider does not answer.
        """
        away = self._unsigned(cookie)
        if away is None or not hmac.compare_digest(away.state.encode(), state.encode()):
            message = "this login did not begin in this browser, or too long ago; /auth/login"
            raise PermissionDeniedError(message)
        try:
            claims = await self.provider.claims(code=code, nonce=away.nonce, verifier=away.verifier)
            name = self._name(claims)
            session = await self._let_in(name, self._roles(claims))
        except PermissionDeniedError as error:
            await self.authenticator.note_failure(network_of(address), str(error))
            raise
        rules = self.rules
        cookies = (
            rules.set_cookie(rules.cookie_name, session, max_age_s=rules.absolute_s),
            rules.set_cookie(rules.login_cookie_name, "", max_age_s=0),
        )
        return Redirect(location=away.page, cookies=cookies)

    async def _let_in(self, name: str, roles: tuple[str, ...]) -> str:
        """Return the cookie value of a new session."""
        now = self.clock.now()
        principal = await self.store.principal(name)
        if principal is not None and principal.disabled:
            raise PermissionDeniedError(f"{name} is disabled; ask an admin")
        if principal is not None and principal.kind != USER:
            raise PermissionDeniedError(f"{name} is a service account, and does not log in")
        if not roles and (principal is None or not principal.roles):
            message = (
                f"{name} has no role here; an admin can grant one with `headrace users add {name} "
                "--role viewer`"
            )
            raise PermissionDeniedError(message)
        if principal is None:
            await self._add(name, roles, now)
        session = self.rules.begin(name, roles, now=now, by=self.settings.issuer)
        change = AuditEntry(
            at=now,
            actor=name,
            action="login",
            object=session.credential.id,
            after={"roles": list(roles)},
        )
        await self.store.add_credential(session.credential, changes=[change])
        _LOG.info("logged in", extra={"user": name})
        return session.text

    async def _add(self, name: str, roles: tuple[str, ...], now: float) -> None:
        """Store a principal that gets roles from groups, so that it can be disabled by name."""
        issuer = self.settings.issuer
        added = Principal(name=name, kind=USER, created=now, created_by=issuer)
        after = {"kind": USER, "roles": [], "by_groups": list(roles)}
        change = AuditEntry(at=now, actor=name, action="user.add", object=name, after=after)
        await self.store.save_principal(added, changes=[change])

    def _name(self, claims: Claims) -> str:
        claim = self.settings.user_claim
        name = claims.get(claim)
        if not isinstance(name, str) or not name or len(name) > _MAX_TEXT or not _is_plain(name):
            raise PermissionDeniedError(
                f"the identity provider sends no {claim} that is a valid user name"
            )
        if claim == "email" and claims.get("email_verified") is not True:
            raise PermissionDeniedError("the identity provider has not verified the address")
        return name

    def _roles(self, claims: Claims) -> tuple[str, ...]:
        """Return the roles of a person's groups."""
        claim: Any = claims.get(self.settings.groups_claim, [])
        groups = claim.split() if isinstance(claim, str) else claim
        own_groups = (
            {str(group) for group in groups[:_MAX_GROUPS]} if isinstance(groups, list) else ()
        )
        pairs = [_role_pair(text) for text in self.settings.roles]
        return tuple(dict.fromkeys(role for group, role in pairs if group in own_groups))

    def _signed(self, away: _LoginState) -> str:
        data = base64.urlsafe_b64encode(msgspec.json.encode(away)).decode().rstrip("=")
        return f"{data}.{self._signature(data)}"

    def _unsigned(self, cookie: str) -> _LoginState | None:
        data, _, signature = cookie.partition(".")
        if not hmac.compare_digest(self._signature(data).encode(), signature.encode()):
            return None
        text = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
        away = msgspec.json.decode(text, type=_LoginState)
        return away if self.clock.now() < away.until else None

    def _signature(self, data: str) -> str:
        return hmac.new(self._key, data.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def make_login(
    settings: OidcSettings, *, store: Store, clock: Clock, authenticator: Authenticator
) -> Login:
    """Return the login for `settings`, which are checked.

    Raises:
        InvalidArgumentError: The settings are invalid.
        FailedPreconditionError: The secret cannot be read.
    """
    check_settings(settings)
    return Login(
        settings=settings,
        provider=Provider(
            settings=settings, clock=clock, secret=secret_reader(settings.client_secret)
        ),
        store=store,
        clock=clock,
        authenticator=authenticator,
    )


def check_settings(settings: OidcSettings) -> None:
    """Reject settings that cannot work or are unsafe.

    Raises:
        InvalidArgumentError: The settings are rejected.
    """
    try:
        check_url(settings.issuer, "the issuer")
        check_url(settings.redirect_url, "the redirect URL")
    except FailedPreconditionError as error:
        raise InvalidArgumentError(str(error)) from error
    if not settings.redirect_url.endswith(CALLBACK):
        message = f"the redirect URL has to end with {CALLBACK}: {settings.redirect_url!r}"
        raise InvalidArgumentError(message)
    if settings.client_secret and not is_reference(settings.client_secret):
        message = (
            "the client secret must not be literal: name a variable as ${NAME}, or a file as "
            "file:/PATH"
        )
        raise InvalidArgumentError(message)
    check_roles(settings.roles)


def check_roles(roles: Sequence[str]) -> None:
    """Reject role mappings that are not `GROUP=ROLE`.

    Raises:
        InvalidArgumentError: A mapping has another format.
    """
    for text in roles:
        group, role = _role_pair(text)
        if not group or not role:
            raise InvalidArgumentError(f"{text[:100]!r} is not GROUP=ROLE")
        parse_grant(role)


def _role_pair(text: str) -> tuple[str, str]:
    group, _, role = text.rpartition("=")
    return group, role


def _is_plain(text: str) -> bool:
    return text.isprintable() and not any(character.isspace() for character in text)


def failed(error: str) -> HeadraceError:
    """Return the error for a browser that the provider sent back without a code."""
    code = error if error.isascii() and error.replace("_", "").isalnum() else "an error"
    return PermissionDeniedError(f"the identity provider reports: {code[:100]}")
