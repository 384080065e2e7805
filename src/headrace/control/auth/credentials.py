"""Credentials: tokens, API keys and the sessions of browsers."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from headrace.control.model.credentials import Credential, CredentialKind

_ID_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 12
_SECRET_BYTES: Final = 32
_SECRET_PATTERN: Final = re.compile(
    rf"(hr[a-z]?)_([{_ID_LETTERS}]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})"
)
TOKEN: Final = "token"  # noqa: S105  # the word, not one
"""Key in a session's grants for the id of the token that it began with."""


PREFIXES: Final = {
    CredentialKind.TOKEN: "hrt",
    CredentialKind.SESSION: "hrs",
    CredentialKind.KEY: "hr",
}
"""Prefixes of credentials' text."""


class NewCredential(msgspec.Struct, frozen=True, kw_only=True):
    """A new credential; `text` is shown once and not stored."""

    credential: Credential
    text: str


def new_secret(prefix: str) -> tuple[str, str]:
    """Return the id of a new credential, and the full text that its holder presents.

    Args:
        prefix: One of `PREFIXES`.
    """
    id_ = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    return id_, f"{prefix}_{id_}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def new_credential(
    kind: CredentialKind,
    owner: str,
    *,
    now: float,
    by: str = "",
    grants: dict[str, Any] | None = None,
    expires: float | None = None,
) -> NewCredential:
    """Return a credential with a new secret.

    Args:
        by: The creator, shown in lists.
        expires: None for a credential that does not expire.
    """
    id_, text = new_secret(PREFIXES[kind])
    credential = Credential(
        id=id_,
        kind=kind,
        owner=owner,
        hash=hash_of(text),
        created=now,
        created_by=by,
        grants=grants or {},
        expires=expires,
    )
    return NewCredential(credential=credential, text=text)


def secret_id(prefix: str, text: str) -> str | None:
    """Return the id in the text of a credential; None if the prefix differs."""
    match = _SECRET_PATTERN.fullmatch(text)
    return match[2] if match is not None and match[1] == prefix else None


def hash_of(text: str) -> str:
    """Return the SHA-256 of a credential in hexadecimal; only this is stored."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def is_secret_of(credential: Credential, text: str) -> bool:
    """Whether `text` is the secret of `credential`, compared in constant time."""
    return hmac.compare_digest(credential.hash, hash_of(text))


_RENEW_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """Lifetimes of sessions, and the names of their cookies."""

    idle_s: float = 3600.0
    """Lifetime without a request."""
    absolute_s: float = 12 * 3600.0
    """Maximum lifetime, regardless of requests."""
    is_secure: bool = False
    """Whether browsers use HTTPS only."""

    @property
    def cookie_name(self) -> str:
        """Return a cookie name that, with HTTPS, only this host can set (RFC 6265bis)."""
        return "__Host-headrace" if self.is_secure else "headrace-session"

    @property
    def login_cookie_name(self) -> str:
        """Return the name of the cookie for a login in progress at the identity provider."""
        return "__Host-headrace-login" if self.is_secure else "headrace-login"

    def set_cookie(self, name: str, value: str, *, max_age_s: float) -> str:
        """Return the header that sets a cookie; an age of 0 removes it."""
        secure = "; Secure" if self.is_secure else ""
        return f"{name}={value}; Path=/; Max-Age={round(max_age_s)}; HttpOnly; SameSite=Lax{secure}"

    def begin(
        self, owner: str, roles: tuple[str, ...], *, now: float, by: str, token: str = ""
    ) -> NewCredential:
        """Return a new session, whose text is the value of its cookie.

        Args:
            roles: Roles from the identity provider, in addition to the principal's own.
            by: The method of the login, shown in lists.
            token: The id of the token that the session depends on; empty for none.
        """
        until = now + self.absolute_s
        grants: dict[str, Any] = {"roles": list(roles), "until": until}
        if token:
            grants[TOKEN] = token
        expires = min(now + self.idle_s, until)
        return new_credential(
            CredentialKind.SESSION, owner, now=now, by=by, grants=grants, expires=expires
        )

    def renewed(self, session: Credential, now: float) -> float | None:
        """Return a session's new expiry after use; None if it need not be stored yet."""
        until = session.grants.get("until")
        limit = float(until) if isinstance(until, int | float) else now
        expires = min(now + self.idle_s, limit)
        before = session.expires or 0.0
        return expires if expires - before >= min(_RENEW_EVERY_S, self.idle_s / 2) else None


def csrf_token(cookie: str) -> str:
    """Return the token that pages of this session send with changes; other sites cannot read it."""
    return hash_of(f"csrf:{cookie}")


def is_csrf_token(cookie: str, header: str) -> bool:
    """Whether a header has the session's CSRF token, compared in constant time."""
    return hmac.compare_digest(csrf_token(cookie).encode(), header.encode("utf-8", "replace"))


def cookie_value(header: str, name: str) -> str:
    """Return a cookie's value in a `Cookie` header; empty if it is missing or duplicate."""
    values = [
        value.strip()
        for key, _, value in (part.partition("=") for part in header.split(";"))
        if key.strip() == name
    ]
    return values[0] if len(values) == 1 else ""


def is_own_page(page: str) -> bool:
    """Whether a path leads to a page of this server."""
    parts = urlsplit(page)
    is_path = page.startswith("/") and not page.startswith(("//", "/\\"))
    is_plain = page.isprintable() and not any(character.isspace() for character in page)
    return is_path and not parts.netloc and is_plain and "\\" not in page
