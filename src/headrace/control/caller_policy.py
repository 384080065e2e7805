"""What does the gateway have to know of callers? What spec and keys say, brought into force."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

from headrace.control.access.credentials import CredentialKind
from headrace.control.agents.errors import log_level_of
from headrace.control.keys import known_keys
from headrace.control.store import Store
from headrace.control.store_thread import StoreThread
from headrace.core import Clock, HeadraceError
from headrace.core.access_settings import AccessSettings
from headrace.core.spec_access import AuthSpec, TierSpec, access_settings
from headrace.gateway import GatewayPolicy, usable_key_set

_LOG: Final = logging.getLogger("headrace.control")
_LOOK_AGAIN_S: Final = 0.5
_PAUSE_S: Final = 0.05
_MOST_KEY_SET_BYTES: Final = 1 << 20


class PolicyTaker(Protocol):
    """The gateway, as far as it knows callers."""

    policy: GatewayPolicy

    async def set_policy(self, policy: GatewayPolicy) -> None:
        """Return when callers are known by `policy`; HeadraceError if that cannot be."""


def access_of(spec: Mapping[str, Any]) -> AccessSettings:
    """What an applied spec says of callers."""
    auth = AuthSpec.model_validate(spec.get("auth", {}))
    tiers = tuple(TierSpec.model_validate(tier) for tier in spec.get("tiers", ()))
    shared = bool(spec.get("gateway", {}).get("shared_limits", False))
    return access_settings(auth, tiers, shared=shared)


def read_policy(store: Store, spec: Mapping[str, Any], *, now: float) -> GatewayPolicy:
    """What the gateway has to know now. Blocking: reads the keys, and key sets from files."""
    access = access_of(spec)
    keys = known_keys(store.credentials(CredentialKind.KEY), now)
    files = {jwt.name: Path(jwt.jwks_file) for jwt in access.jwt if jwt.jwks_file}
    key_sets = {name: text for name, path in files.items() if (text := _key_set(path))}
    return GatewayPolicy(access=access, keys=keys, key_sets=key_sets)


def _key_set(path: Path) -> str:
    """The keys in a file; empty if there are none: then its provider's tokens are refused."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_KEY_SET_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        _warn(path, str(error))
        return ""
    found = _usable(text) if len(text) <= _MOST_KEY_SET_BYTES else ""
    if not found:
        _warn(path, "no key in it verifies a token")
    return found


# Files are read twice a second, and seldom change.
@lru_cache(maxsize=32)
def _usable(text: str) -> str:
    return usable_key_set(text)


@lru_cache(maxsize=32)
def _warn(path: Path, error: str) -> None:
    """Say it once."""
    _LOG.warning("cannot use a key set", extra={"path": str(path), "error": error})


@dataclass(slots=True, kw_only=True)
class CallerPolicy:
    """Keeps what the gateway knows of callers what it should be.

    `spec`: the newest applied document. `next_change`: set when that may have changed. Keys that
    another control plane of the same store changed, and files of key sets, are looked at twice a
    second.
    """

    store: StoreThread
    clock: Clock
    gateway: PolicyTaker
    spec: Callable[[], Mapping[str, Any]]
    next_change: Callable[[], asyncio.Event]
    _error: str = ""
    _is_told: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def prepare(self) -> None:
        """Have the gateway start with what is stored. Blocking."""
        self.gateway.policy = read_policy(self.store.store, self.spec(), now=self.clock.now())

    async def run(self) -> None:
        """Follow spec, keys and files until cancelled; after the gateway was opened."""
        while True:
            change = self.next_change()
            try:
                await self.apply()
                self._error = ""
            except HeadraceError as error:
                if str(error) != self._error:
                    _LOG.log(log_level_of(error), "cannot tell the gateway who may call: %s", error)
                self._error = str(error)
            await asyncio.sleep(_PAUSE_S)
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await change.wait()
            except TimeoutError:
                continue

    async def apply(self) -> None:
        """Return when the gateway knows what is stored now.

        Raises:
            HeadraceError: It does not run, or refused.
        """
        async with self._lock:
            wanted = await self.store.run(
                read_policy, self.store.store, self.spec(), now=self.clock.now()
            )
            # One that was adopted may know what an earlier control plane told it.
            if wanted != self.gateway.policy or not self._is_told:
                await self.gateway.set_policy(wanted)
                self._is_told = True
