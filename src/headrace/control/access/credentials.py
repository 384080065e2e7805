"""What shows who somebody is? Tokens, sessions and API keys, of which only the hash is kept.

A token is `hrt_ID_SECRET`: its id finds it, its secret proves it. The secret has 256 bits, so that
one SHA-256 is enough: nobody guesses it, with the hash in hand or without.
"""

import hashlib
import hmac
import re
import secrets
from enum import StrEnum
from typing import Any, Final

import msgspec

_ID_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 12
_SECRET_BYTES: Final = 32
_SECRET_PATTERN: Final = re.compile(
    rf"(hr[a-z]?)_([{_ID_LETTERS}]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})"
)


class CredentialKind(StrEnum):
    """What a credential is for."""

    TOKEN = "token"  # noqa: S105  # the word, not one
    """Asks the management API, as a service account."""
    SESSION = "session"
    """A browser that somebody logged in with."""
    KEY = "key"
    """Calls endpoints through the gateway."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """One token, session or key, without its secret.

    `owner`: the principal that it stands for, or how callers with a key are named. `hash`: the
    SHA-256 of the whole, in hexadecimal. `grants`: what is to be known of it, by its kind. Times
    are in seconds since 1970; `expires` None for never, `revoked` None while it is valid.
    """

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
        """In a word: `valid`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.is_valid(now) else "expired"


class NewCredential(msgspec.Struct, frozen=True, kw_only=True):
    """One that was just made; `text` is shown once and never seen again."""

    credential: Credential
    text: str


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may be let in: a person (`user`), or a program (`service`).

    `roles`: as `headrace.control.access.roles` reads them.
    """

    name: str
    kind: str
    created: float
    roles: tuple[str, ...] = ()
    created_by: str = ""
    disabled: bool = False


def new_secret(prefix: str) -> tuple[str, str]:
    """The id of a new credential, and the whole text that its holder shows.

    Args:
        prefix: `hrt` for a token, `hrs` for a session, `hr` for a key.
    """
    id_ = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    return id_, f"{prefix}_{id_}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def secret_id(prefix: str, text: str) -> str | None:
    """The id in the text of a credential; None if it is none of this prefix."""
    found = _SECRET_PATTERN.fullmatch(text)
    return found[2] if found is not None and found[1] == prefix else None


def hash_of(text: str) -> str:
    """What is kept of a credential: its SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def is_secret_of(credential: Credential, text: str) -> bool:
    """Whether `text` is this credential's; takes the same time whatever it is."""
    return hmac.compare_digest(credential.hash, hash_of(text))
