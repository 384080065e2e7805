"""Authentication of callers, with cached credentials and a limit on failed attempts."""

import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from headrace.control.auth.credentials import (
    PREFIXES,
    TOKEN,
    SessionRules,
    cookie_value,
    csrf_token,
    is_secret_of,
    secret_id,
)
from headrace.control.auth.roles import Caller, parse_grants
from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.state.store import Store
from headrace.core import (
    Clock,
    FailedPreconditionError,
    HeadraceError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
)

MAX_FAILURES: Final = 10
WINDOW_S: Final = 60.0
_MAX_KEYS: Final = 10_000
_IPV6_NETWORK_BITS: Final = 64
_IPV6: Final = 6


@dataclass(slots=True)
class _Count:
    since: float
    failures: int = 0


@dataclass(slots=True, kw_only=True)
class LoginThrottle:
    """Failed attempts per window; the caller passes the time (monotonic, in seconds)."""

    max_failures: int = MAX_FAILURES
    window_s: float = WINDOW_S
    _counts: OrderedDict[str, _Count] = field(default_factory=OrderedDict)

    def wait_s(self, key: str, now: float) -> float:
        """Return how long `key` is refused from now on; 0 if it is not."""
        count = self._counts.get(key)
        if count is None or count.failures < self.max_failures:
            return 0.0
        return max(count.since + self.window_s - now, 0.0)

    def fail(self, key: str, now: float) -> bool:
        """Count a failure; return whether to record it: the first of a window, and the last."""
        count = self._counts.get(key)
        if count is None or now - count.since >= self.window_s:
            self._counts.pop(key, None)
            count = self._counts[key] = _Count(since=now)
            # The oldest entry is evicted: with so many addresses a limit per address is useless
            # anyway.
            while len(self._counts) > _MAX_KEYS:
                self._counts.popitem(last=False)
        count.failures += 1
        return count.failures in {1, self.max_failures}


def network_of(address: str) -> str:
    """Return the network that counts as one address: for IPv6 that of one household."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address or "local"
    if ip.version != _IPV6:
        return str(ip)
    mapped = ip.ipv4_mapped
    if mapped is not None:
        return str(mapped)
    return str(ipaddress.ip_network((ip, _IPV6_NETWORK_BITS), strict=False))


MAX_NOTED: Final = 60
NOTED_EVERY_S: Final = 3600.0


@dataclass(slots=True, kw_only=True)
class Noted:
    """Limit on the records in a window of time (monotonic, in seconds)."""

    most: int = MAX_NOTED
    window_s: float = NOTED_EVERY_S
    _since: float = 0.0
    _count: int = 0

    def take(self, now: float) -> bool:
        """Whether another record fits into the window."""
        if not self._count or now - self._since >= self.window_s:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= self.most


FRESH_S: Final = 1.0
OUTAGE_S: Final = 900.0
_RETRY_S: Final = 10.0
_MOST: Final = 1000


@dataclass(slots=True)
class _CachedCredential:
    credential: Credential
    principal: Principal | None
    read_at: float
    retry_at: float


@dataclass(slots=True, kw_only=True)
class KnownCredentials:
    """Credentials by id with their principals, read from the store at most `FRESH_S` ago."""

    store: Store
    clock: Clock
    _known: OrderedDict[str, _CachedCredential] = field(default_factory=OrderedDict)

    async def find(self, id_: str) -> tuple[Credential, Principal | None] | None:
        """Return the credential with this id and its owner; None if it does not exist.

        Raises:
            UnavailableError: The store cannot be read, and the credential was not cached recently.
        """
        now = self.clock.monotonic()
        cached = self._known.get(id_)
        if cached is not None and now < cached.retry_at:
            return cached.credential, cached.principal
        try:
            return await self._read(id_, now)
        except FailedPreconditionError as error:
            if cached is None or now - cached.read_at > OUTAGE_S:
                message = f"cannot authenticate the caller: {error}"
                raise UnavailableError(message) from error
            cached.retry_at = now + _RETRY_S
            return cached.credential, cached.principal

    def forget(self, id_: str = "") -> None:
        """Drop one cached credential or all, because a principal's rights changed."""
        if id_:
            self._known.pop(id_, None)
        else:
            self._known.clear()

    async def _read(self, id_: str, now: float) -> tuple[Credential, Principal | None] | None:
        credential = await self.store.credential(id_)
        if credential is None:
            self._known.pop(id_, None)
            return None
        principal = await self.store.principal(credential.owner)
        self._known[id_] = _CachedCredential(credential, principal, now, now + FRESH_S)
        self._known.move_to_end(id_)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return credential, principal


_LOG: Final = logging.getLogger("headrace.control")
_BEARER: Final = "bearer"
_WANTED: Final = (
    "the management API requires a token: send `authorization: Bearer hrt_...`; on this "
    "machine, `headrace token show` prints one"
)


@dataclass(slots=True, kw_only=True)
class Authenticator:
    """Authenticates callers, and throttles failed attempts."""

    store: Store
    clock: Clock
    rules: SessionRules = field(default_factory=SessionRules)
    throttle: LoginThrottle = field(default_factory=LoginThrottle)
    noted: Noted = field(default_factory=Noted)
    credentials: KnownCredentials = field(init=False)

    def __post_init__(self) -> None:
        self.credentials = KnownCredentials(store=self.store, clock=self.clock)

    async def caller(
        self, headers: Mapping[str, str], address: str, *, renews: bool = True
    ) -> Caller:
        """Return the caller that a request authenticates as.

        Args:
            headers: By lower-case name.
            address: The client's address.
            renews: Whether the request counts as activity of the session.

        Raises:
            UnauthenticatedError: The credential is missing, invalid, expired or revoked.
            OverloadedError: Too many attempts from this address failed.
            UnavailableError: The store cannot be read.
        """
        authorization = headers.get("authorization")
        cookie = cookie_value(headers.get("cookie", ""), self.rules.cookie_name)
        if authorization is not None:
            scheme, _, text = authorization.strip().partition(" ")
            if scheme.lower() != _BEARER:
                raise UnauthenticatedError(_WANTED)
            return await self._by_token(text.strip(), network_of(address))
        if cookie:
            return await self._by_session(cookie, network_of(address), renews=renews)
        raise UnauthenticatedError(_WANTED)

    async def _by_token(self, text: str, network: str) -> Caller:
        credential, principal = await self._checked(text, CredentialKind.TOKEN, network)
        return Caller(
            name=credential.owner,
            kind=principal.kind,
            grants=parse_grants(principal.roles),
            credential=credential.id,
        )

    async def _by_session(self, text: str, network: str, *, renews: bool) -> Caller:
        credential, principal = await self._checked(text, CredentialKind.SESSION, network)
        id_ = str(credential.grants.get(TOKEN, ""))
        entry = await self.credentials.find(id_) if id_ else None
        if id_ and (entry is None or not entry[0].is_valid(self.clock.now())):
            raise UnauthenticatedError("the token that this session began with is not valid now")
        expires = self.rules.renewed(credential, self.clock.now()) if renews else None
        if expires is not None:
            with _log_unavailable():
                await self.store.renew_credential(credential.id, expires=expires)
            self.credentials.forget(credential.id)
        roles = [str(role) for role in credential.grants.get("roles", ())]
        return Caller(
            name=credential.owner,
            kind=principal.kind,
            grants=parse_grants([*principal.roles, *roles]),
            credential=credential.id,
            csrf_token=csrf_token(text),
        )

    async def _checked(
        self, text: str, kind: CredentialKind, network: str
    ) -> tuple[Credential, Principal]:
        id_, now = secret_id(PREFIXES[kind], text), self.clock.monotonic()
        entry = None if id_ is None else await self.credentials.find(id_)
        if entry is None or entry[0].kind is not kind:
            raise await self._failed(network, network, f"unknown {kind.value}")
        credential, principal = entry
        key = f"{network} {credential.id}"
        self._check_throttle(key, now)
        if not is_secret_of(credential, text):
            raise await self._failed(key, network, f"unknown {kind.value}")
        if not credential.is_valid(self.clock.now()):
            word = "expired" if credential.revoked is None else "revoked"
            raise UnauthenticatedError(f"the {kind.value} is {word}; ask an admin for another")
        if principal is None or principal.disabled:
            raise UnauthenticatedError(f"{credential.owner} is disabled; ask an admin")
        return credential, principal

    def _check_throttle(self, key: str, now: float) -> None:
        wait_s = self.throttle.wait_s(key, now)
        if wait_s > 0:
            raise OverloadedError("too many attempts have failed", retry_after_s=wait_s)

    async def _failed(self, key: str, network: str, reason: str) -> HeadraceError:
        """Count a failure; return the error for the caller."""
        now = self.clock.monotonic()
        self._check_throttle(key, now)
        if self.throttle.fail(key, now):
            await self.note_failure(network, f"{reason} ({key.rpartition(' ')[2]})")
        return UnauthenticatedError(f"{reason}; `headrace token show` has the one of a home")

    async def note_failure(self, network: str, reason: str) -> None:
        """Record a failed attempt in the log and in the audit log, up to a limit."""
        _LOG.warning("refused a caller", extra={"address": network, "reason": reason})
        if not self.noted.take(self.clock.monotonic()):
            return
        change = AuditEntry(
            at=self.clock.now(),
            actor="",
            action="login.failed",
            object=network,
            after={"reason": reason},
        )
        with _log_unavailable():
            await self.store.add_changes([change])


@contextmanager
def _log_unavailable() -> Iterator[None]:
    """Log a failed write to the store, which must not fail the request."""
    try:
        yield
    except HeadraceError as error:
        _LOG.warning("cannot record a login", extra={"error": str(error)})
