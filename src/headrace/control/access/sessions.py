"""How long does a browser stay logged in, and how does a page show that it is the console's own?"""

import hmac
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.control.access.credentials import (
    Credential,
    CredentialKind,
    hash_of,
    new_secret,
)

PREFIX: Final = "hrs"
TOKEN: Final = "token"  # noqa: S105  # the word, not one
"""Under this a session's grants have the id of the token that it began with."""
_RENEW_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """How long sessions live, and how their cookie is called.

    `idle_s`: without a request. `absolute_s`: at most, with however many. `is_secure`: whether
    browsers come by HTTPS only.
    """

    idle_s: float = 3600.0
    absolute_s: float = 12 * 3600.0
    is_secure: bool = False

    @property
    def cookie_name(self) -> str:
        """With HTTPS one that no other host, path or plain connection can set (RFC 6265bis)."""
        return "__Host-headrace" if self.is_secure else "headrace-session"

    @property
    def login_cookie_name(self) -> str:
        """The cookie of a browser that is on its way to the identity provider."""
        return "__Host-headrace-login" if self.is_secure else "headrace-login"

    def set_cookie(self, name: str, value: str, *, max_age_s: float) -> str:
        """The header that sets a cookie; an age of 0 removes it."""
        secure = "; Secure" if self.is_secure else ""
        return f"{name}={value}; Path=/; Max-Age={round(max_age_s)}; HttpOnly; SameSite=Lax{secure}"

    def begin(
        self, owner: str, roles: tuple[str, ...], *, now: float, by: str, token: str = ""
    ) -> tuple[Credential, str]:
        """A new session, and what its cookie holds.

        Args:
            roles: What the identity provider says, beside the principal's own.
            by: Who let it in, for lists.
            token: The id of the token without which the session is not valid; empty for none.
        """
        id_, text = new_secret(PREFIX)
        until = now + self.absolute_s
        grants: dict[str, Any] = {"roles": list(roles), "until": until}
        if token:
            grants[TOKEN] = token
        session = Credential(
            id=id_,
            kind=CredentialKind.SESSION,
            owner=owner,
            hash=hash_of(text),
            created=now,
            created_by=by,
            grants=grants,
            expires=min(now + self.idle_s, until),
        )
        return session, text

    def renewed(self, session: Credential, now: float) -> float | None:
        """When a session expires that is used now; None if that need not be written yet."""
        until = session.grants.get("until")
        limit = float(until) if isinstance(until, int | float) else now
        expires = min(now + self.idle_s, limit)
        before = session.expires or 0.0
        return expires if expires - before >= min(_RENEW_EVERY_S, self.idle_s / 2) else None


def csrf_token(cookie: str) -> str:
    """What a page of this session sends along with a change; another site cannot read it."""
    return hash_of(f"csrf:{cookie}")


def is_csrf_token(cookie: str, given: str) -> bool:
    """Whether a header has the session's token; takes the same time whatever it is."""
    return hmac.compare_digest(csrf_token(cookie).encode(), given.encode("utf-8", "replace"))


def cookie_value(header: str, name: str) -> str:
    """A cookie's value in a `Cookie` header; empty if it is not there, or there twice."""
    found = [
        value.strip()
        for key, _, value in (part.partition("=") for part in header.split(";"))
        if key.strip() == name
    ]
    return found[0] if len(found) == 1 else ""


def is_own_page(page: str) -> bool:
    """Whether a path leads to a page of this server and nowhere else."""
    parts = urlsplit(page)
    is_path = page.startswith("/") and not page.startswith(("//", "/\\"))
    is_plain = page.isprintable() and not any(character.isspace() for character in page)
    return is_path and not parts.netloc and is_plain and "\\" not in page
