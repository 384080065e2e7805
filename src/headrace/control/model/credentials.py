"""Records of credentials and of the principals that hold them."""

from enum import StrEnum
from typing import Any

import msgspec


class CredentialKind(StrEnum):
    """Purpose of a credential."""

    TOKEN = "token"  # noqa: S105  # the word, not one
    """Authenticates a service account at the management API."""
    SESSION = "session"
    """A browser session after a login."""
    KEY = "key"
    """Authenticates calls of endpoints at the gateway."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """One token, session or key, without its secret."""

    id: str
    kind: CredentialKind
    owner: str
    hash: str
    created: float
    created_by: str = ""
    grants: dict[str, Any] = {}
    expires: float | None = None
    revoked: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def state(self, now: float) -> str:
        """Return `valid`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.is_valid(now) else "expired"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A person (`user`) or a program (`service`) that may use the management API."""

    name: str
    kind: str
    created: float
    """Seconds since 1970."""
    roles: tuple[str, ...] = ()
    """Such as `viewer`, `operator:ENDPOINT` or `admin`."""
    created_by: str = ""
    disabled: bool = False
