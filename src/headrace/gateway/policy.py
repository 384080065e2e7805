"""Who may call, as the gateway is told it: identity providers, certificates, tiers, API keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.core.spec_access import AccessSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One API key, without the key.

    `digest`: the SHA-256 of the whole key, in lower-case hex. `expires_at`: seconds since 1970;
    None for never. `tier`: empty for none.
    """

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    tier: str = ""
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPolicy:
    """What a gateway knows of its callers.

    `key_sets`: the public keys (RFC 7517) of identity providers that come from a file, by the
    provider's name; a provider without any takes no token.
    """

    access: AccessSettings = field(default_factory=AccessSettings)
    keys: tuple[ApiKey, ...] = ()
    key_sets: Mapping[str, str] = field(default_factory=dict)
