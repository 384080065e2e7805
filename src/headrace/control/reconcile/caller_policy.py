"""Policy of callers for the gateway, from the spec and from stored API keys."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.control.agents.build import Gateway
from headrace.control.auth.credentials import NewCredential, new_credential
from headrace.control.base.faults import LOOP, Faults
from headrace.control.base.journal import wait_for
from headrace.control.gateway.routes import log_level_of
from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.credentials import Credential, CredentialKind
from headrace.control.reconcile.publication import Reconciling
from headrace.control.state.store import Store
from headrace.core import Clock, HeadraceError, InvalidArgumentError, NotFoundError
from headrace.core.spec.access import AccessSettings, AuthSpec, TierSpec
from headrace.core.spec.base import parsed
from headrace.core.spec.parse import SpecMistake
from headrace.gateway import ApiKey, GatewayPolicy, usable_key_set

EVERYTHING: Final = "infer:*"
BATCH_ACTOR: Final = "batch:"
"""Prefix of the creator of a batch's temporary key, which has the name of the batch's owner."""


class KeyGrants(msgspec.Struct, frozen=True, kw_only=True):
    """Grants of an API key: what it may call, and its tier; empty for none."""

    scopes: tuple[str, ...]
    tier: str = ""


@dataclass(slots=True, kw_only=True)
class Keys:
    """Reads and changes API keys. `apply` sends the stored keys to the gateway."""

    store: Store
    clock: Clock
    apply: Callable[[], Awaitable[None]]

    async def all(self) -> list[Credential]:
        """Return all keys by age, including invalid ones."""
        return await self.store.credentials(CredentialKind.KEY)

    async def find(self, text: str, may_see: Callable[[Credential], bool]) -> Credential:
        """Return the key with this id, or the only valid key with this name.

        Args:
            may_see: Whether the caller may see a key; other keys count as absent.

        Raises:
            NotFoundError: No key has this id or name.
            InvalidArgumentError: Several valid keys have the name.
        """
        visible = [key for key in await self.all() if may_see(key)]
        by_id = [key for key in visible if key.id == text]
        named = [
            k
            for k in visible
            if k.owner == text
            and k.is_valid(self.clock.now())
            and not k.created_by.startswith(BATCH_ACTOR)
        ]
        if len(named) > 1 and not by_id:
            ids = ", ".join(key.id for key in named)
            message = f"several keys are called '{text}'; name one by its id: {ids}"
            raise InvalidArgumentError(message)
        if not by_id and not named:
            message = f"unknown API key '{text[:100]}'; `headrace keys list` lists them"
            raise NotFoundError(message)
        return (by_id or named)[0]

    async def create(
        self, name: str, grants: KeyGrants, *, expires_in_s: float | None, actor: str
    ) -> NewCredential:
        """Create a key that the gateway accepts from now on.

        Args:
            name: Name of its callers for replicas and in logs.
            expires_in_s: None for a key that does not expire.

        Raises:
            HeadraceError: The key is stored, but the gateway has not received it yet.
        """
        now = self.clock.now()
        created = new_credential(
            CredentialKind.KEY,
            name,
            now=now,
            by=actor,
            grants=msgspec.to_builtins(grants),
            expires=None if expires_in_s is None else now + expires_in_s,
        )
        key = created.credential
        after = {"name": name, "expires": key.expires, **key.grants}
        change = AuditEntry(at=now, actor=actor, action="key.create", object=key.id, after=after)
        await self.store.add_credential(key, changes=[change])
        await self.apply()
        return created

    async def revoke(self, key: Credential, *, actor: str) -> Credential:
        """Revoke a key at the store and the gateway; return the revoked key.

        Raises:
            HeadraceError: The key is revoked, but the gateway has not received that yet.
        """
        now = self.clock.now()
        before = {"name": key.owner, "revoked": key.revoked}
        change = AuditEntry(at=now, actor=actor, action="key.revoke", object=key.id, before=before)
        revoked = await self.store.revoke_credential(key.id, revoked_at=now, changes=[change])
        await self.apply()
        return revoked


def grants_of(key: Credential) -> KeyGrants:
    """Return the grants of a stored key; unreadable grants are empty."""
    try:
        return msgspec.convert(key.grants, type=KeyGrants)
    except msgspec.ValidationError:
        return KeyGrants(scopes=())


def known_keys(credentials: Sequence[Credential], now: float) -> tuple[ApiKey, ...]:
    """Return the keys that a gateway accepts now, sorted by id."""
    valid = (key for key in credentials if key.is_valid(now))
    return tuple(sorted((_api_key(key) for key in valid), key=lambda key: key.id))


def endpoint_of(scope: str) -> str | None:
    """Return the endpoint of a scope; None for all endpoints."""
    name: Any = scope.split(":")[1]
    return None if name == "*" else str(name)


def _api_key(key: Credential) -> ApiKey:
    grants = grants_of(key)
    return ApiKey(
        id=key.id,
        name=key.owner,
        digest=key.hash,
        scopes=grants.scopes,
        tier=grants.tier,
        expires_at=key.expires,
    )


_LOG: Final = logging.getLogger("headrace.control")
_RECHECK_INTERVAL_S: Final = 0.5
_PAUSE_S: Final = 0.05
_MAX_KEY_SET_BYTES: Final = 1 << 20


def access_of(spec: Mapping[str, Any]) -> AccessSettings:
    """Return the access settings of an applied spec."""
    auth = parsed(AuthSpec, spec.get("auth", {}))
    return AccessSettings(
        jwt=auth.jwt,
        certificates=auth.certificates,
        tiers=tuple(parsed(TierSpec, tier) for tier in spec.get("tiers", ())),
        shared_limits=bool(spec.get("gateway", {}).get("shared_limits", False)),
    )


def read_policy(
    keys: Sequence[Credential], spec: Mapping[str, Any], *, now: float
) -> GatewayPolicy:
    """Return the gateway's policy from stored `keys` and `spec`. Blocking: reads key sets."""
    access = access_of(spec)
    key_sets: dict[str, str] = {}
    for jwt in access.jwt:
        text, problem = _key_set(Path(jwt.jwks_file)) if jwt.jwks_file else ("", "")
        if problem:  # its tokens are refused
            _warn(jwt.jwks_file, problem)
        elif text:
            key_sets[jwt.name] = text
    return GatewayPolicy(access=access, keys=known_keys(keys, now), key_sets=key_sets)


def key_set_mistakes(auth: AuthSpec) -> list[SpecMistake]:
    """Return the mistakes in files of key sets. Blocking."""
    files = {i: jwt.jwks_file for i, jwt in enumerate(auth.jwt) if jwt.jwks_file}
    problems = {i: _key_set(Path(file))[1] for i, file in files.items()}
    return [
        SpecMistake(place=f"auth.jwt[{i}].jwks_file", message=f"{files[i]} {problem}")
        for i, problem in problems.items()
        if problem
    ]


def _key_set(path: Path) -> tuple[str, str]:
    """Return the key set in a file, and an error message if it cannot be used."""
    try:
        if not path.is_file():  # a pipe would be read forever
            return "", "is no file"
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_KEY_SET_BYTES + 1)
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        text = ""
    keys = _usable(text) if len(text) <= _MAX_KEY_SET_BYTES else ""
    return keys, "" if keys else "holds no key that verifies a token"


# Files are read twice a second, and seldom change.
@lru_cache(maxsize=32)
def _usable(text: str) -> str:
    return usable_key_set(text)


@lru_cache(maxsize=32)
def _warn(path: str, error: str) -> None:
    """Log an error of a key set once."""
    _LOG.warning("cannot use a key set", extra={"path": path, "error": error})


@dataclass(slots=True, kw_only=True)
class CallerPolicy:
    """Keeps the gateway's caller policy in line with the applied spec and the stored keys.

    Keys that another control plane of the same store changed, and files of key sets, are read twice
    per second.
    """

    store: Store
    clock: Clock
    gateway: Gateway
    reconciler: Reconciling
    faults: Faults = field(default_factory=Faults)
    _error: str = ""
    _is_reported: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Follow spec, keys and files until cancelled; call it after the gateway was opened."""
        while True:
            change = self.reconciler.changes.next
            with self.faults.contain(LOOP, "callers"):
                try:
                    await self.apply()
                    self._error = ""
                except HeadraceError as error:
                    if str(error) != self._error:
                        level = log_level_of(error)
                        _LOG.log(level, "cannot send the caller policy to the gateway: %s", error)
                    self._error = str(error)
            await asyncio.sleep(_PAUSE_S)
            await wait_for(change, _RECHECK_INTERVAL_S)

    async def apply(self) -> None:
        """Send the current policy; return when the gateway has acknowledged it.

        Raises:
            HeadraceError: The gateway does not run, or rejected the policy.
        """
        async with self._lock:
            keys = await self.store.credentials(CredentialKind.KEY)
            spec = self.reconciler.desired.spec
            policy = await asyncio.to_thread(read_policy, keys, spec, now=self.clock.now())
            # An adopted gateway may have the policy of an earlier control plane.
            if policy != self.gateway.policy or not self._is_reported:
                await self.gateway.set_policy(policy)
                self._is_reported = True
