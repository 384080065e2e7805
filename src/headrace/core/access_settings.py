"""Who may call which endpoint, and how much: what the gateway is told."""

import math
from enum import StrEnum

import msgspec


class Method(StrEnum):
    """How a caller shows who it is."""

    KEY = "key"
    """An API key: `x-api-key`, or `authorization: Bearer hr_...`."""
    JWT = "jwt"
    """A bearer token that an identity provider signed (RFC 7519)."""
    CERTIFICATE = "certificate"
    """A client certificate (mutual TLS)."""


class JwtSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One identity provider whose tokens are taken.

    `jwks_url` or `jwks_file`: its public keys (RFC 7517). A token needs `exp`, one of `audiences`
    and `issuer`. `*_claim`: where the caller's id, its scopes and its tier stand.
    """

    name: str
    issuer: str
    audiences: tuple[str, ...]
    jwks_url: str = ""
    jwks_file: str = ""
    jwks_cache_s: float = 300.0
    clock_skew_s: int = 5
    caller_claim: str = "sub"
    scope_claim: str = "scope"
    tier_claim: str = "tier"


class CertificateRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Callers whose certificate names them so; exactly one of `dns`, `uri`, `common_name`.

    A `*` at the end or the beginning stands for anything.
    """

    name: str
    dns: str = ""
    uri: str = ""
    common_name: str = ""
    scopes: tuple[str, ...] = ()
    tier: str = ""


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may come: None for no limit.

    `requests_per_s` with `burst` at once; `rows_per_s` counts rows of the first input;
    `max_concurrent` counts requests under way; `requests_per_day` starts anew at midnight UTC.
    """

    requests_per_s: float | None = None
    burst: int | None = None
    rows_per_s: float | None = None
    max_concurrent: int | None = None
    requests_per_day: int | None = None

    @property
    def most_at_once(self) -> int:
        """How many requests may come at once: `burst`, else what one second allows."""
        return self.burst or max(math.ceil(self.requests_per_s or 0.0), 1)

    @property
    def needs_service(self) -> bool:
        """Whether a gateway alone cannot count it: what a request held or was worth, or a day."""
        found = (self.rows_per_s, self.max_concurrent, self.requests_per_day)
        return any(limit is not None for limit in found)

    @property
    def is_unlimited(self) -> bool:
        """Whether anything goes."""
        return self.requests_per_s is None and not self.needs_service


class TierSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every caller of one tier may do, each for itself. A higher `priority` is shed later."""

    name: str
    limits: LimitSettings = LimitSettings()
    priority: int = 0


class EndpointLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one endpoint: of all its callers together, and of each of them.

    `max_body_bytes`: None takes the gateway's.
    """

    total: LimitSettings = LimitSettings()
    per_caller: LimitSettings = LimitSettings()
    max_body_bytes: int | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether any number of requests may come."""
        return self.total.is_unlimited and self.per_caller.is_unlimited

    def is_counted_by_service(self, *, shared: bool) -> bool:
        """Whether the rate limit service counts all of these limits, and the gateway none.

        One of the two counts them all: what one refuses is then not counted by the other.
        """
        needed = self.total.needs_service or self.per_caller.needs_service
        return needed or (shared and not self.is_unlimited)


class EndpointAccess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may call one endpoint: whoever shows one of `any_of`, or anybody if it is `public`.

    Each of `any_of` is a `Method`, or `jwt:NAME` for one identity provider.
    """

    public: bool = False
    any_of: tuple[str, ...] = (Method.KEY, Method.JWT, Method.CERTIFICATE)


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the whole gateway knows of callers, besides their API keys.

    `shared_limits`: whether several gateways share each limit, which a service then counts.
    """

    jwt: tuple[JwtSettings, ...] = ()
    certificates: tuple[CertificateRule, ...] = ()
    tiers: tuple[TierSettings, ...] = ()
    shared_limits: bool = False

    @property
    def are_tiers_counted_by_service(self) -> bool:
        """As `EndpointLimits.is_counted_by_service`, of all tiers."""
        limited = [tier.limits for tier in self.tiers if not tier.limits.is_unlimited]
        return any(limits.needs_service for limits in limited) or (
            self.shared_limits and bool(limited)
        )


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a port is encrypted: paths of PEM files, and what callers have to show.

    `client_ca_file`: empty takes no client certificates. `min_version`: `1.2` or `1.3`.
    """

    certificate_file: str
    key_file: str
    client_ca_file: str = ""
    require_client_certificate: bool = False
    min_version: str = "1.2"
