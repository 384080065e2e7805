"""Spec parts for callers: `auth`, `tiers`, `security`, `tls`, `access` and `limits`.

A spec contains no secrets: it names files and, in some fields, environment variables as `${NAME}`.
"""

import ipaddress
import math
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from headrace.core.names import NAME_PATTERN
from headrace.core.priorities import MAX_ABOVE, MAX_BELOW
from headrace.core.settings import DEFAULT_MAX_BODY_BYTES
from headrace.core.spec.part import FLAT, FileOnly, SpecPart
from headrace.core.spec.upstream import check_upstream_host

_DAY_S: Final = 86_400.0
_MOST: Final = 1_000_000_000
_SCOPE_PATTERN: Final = r"^[a-z]+:[A-Za-z0-9_.*-]{1,128}(:[0-9*]{1,18})?$"
INFER_SCOPE_PATTERN: Final = r"^infer:([A-Za-z0-9][A-Za-z0-9_.-]{0,127}|\*)(:[0-9]{1,18})?$"
"""Scope of an API key."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
METHOD_PATTERN: Final = rf"^(key|jwt|certificate|jwt:{NAME_PATTERN[1:-1]})$"

_File = Annotated[str, Meta(min_length=1, max_length=4096)]
_Host = Annotated[str, Meta(min_length=1, max_length=255), check_upstream_host]


class Method(StrEnum):
    """Method by which a caller authenticates."""

    KEY = "key"
    """An API key: `x-api-key`, or `authorization: Bearer hr_...`."""
    JWT = "jwt"
    """A bearer token that an identity provider signed (RFC 7519)."""
    CERTIFICATE = "certificate"
    """A client certificate (mutual TLS)."""


def is_authentic_url(url: str) -> bool:
    """Whether responses from `url` cannot be forged on the way: HTTPS, or HTTP on loopback."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_local = parts.scheme == "http" and parts.hostname in _LOOPBACK
    return bool(parts.hostname) and (parts.scheme == "https" or is_local)


def _check_authentic(url: str) -> str:
    if not is_authentic_url(url):
        msg = "has to begin with https://, or with http:// and a loopback host"
        raise ValueError(msg)
    return url


class JwtSpec(SpecPart, frozen=True, kw_only=True):
    """One identity provider whose tokens are accepted; `exp`, issuer and audience are required."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    """Name of the provider in this spec."""
    issuer: Annotated[str, Meta(min_length=1, max_length=1024)]
    """The token's `iss`, exactly."""
    audiences: Annotated[tuple[str, ...], Meta(min_length=1, max_length=32)]
    """The token's `aud` must contain one of these."""
    jwks_url: Annotated[str, _check_authentic, FileOnly(null=True, max_length=2048)] = ""
    """URL of its public keys: https, or http on loopback."""
    jwks_file: Annotated[str, FileOnly(null=True, min_length=1, max_length=4096)] = ""
    """Or a file with its public keys (relative to the spec file)."""
    jwks_cache_s: Annotated[float, Meta(ge=1.0, le=_DAY_S)] = 300.0
    """How long fetched keys are cached. Unit: seconds."""
    clock_skew_s: Annotated[int, Meta(ge=0, le=300)] = 5
    """Tolerated difference between clocks. Unit: seconds."""
    caller_claim: Annotated[str, Meta(min_length=1, max_length=128)] = "sub"
    """Claim that names the caller."""
    scope_claim: Annotated[str, Meta(min_length=1, max_length=128)] = "scope"
    """Claim with the caller's scopes: a list, or words separated by spaces."""
    tier_claim: Annotated[str, Meta(min_length=1, max_length=128)] = "tier"
    """Claim with the caller's tier, if there are tiers."""

    def __post_init__(self) -> None:
        if bool(self.jwks_url) == bool(self.jwks_file):
            msg = "needs either 'jwks_url' or 'jwks_file'"
            raise ValueError(msg)


class CertificateSpec(SpecPart, frozen=True, kw_only=True):
    """Callers identified by their client certificate; needs the gateway's `tls.client_ca_file`."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    """Name of these callers in this spec."""
    dns: Annotated[str, FileOnly(null=True, min_length=1, max_length=255)] = ""
    """DNS name in the certificate; may begin or end with *."""
    uri: Annotated[str, FileOnly(null=True, min_length=1, max_length=2048)] = ""
    """Or a URI, such as a SPIFFE id."""
    common_name: Annotated[str, FileOnly(null=True, min_length=1, max_length=255)] = ""
    """Or the common name of its subject."""
    scopes: Annotated[
        tuple[Annotated[str, Meta(pattern=_SCOPE_PATTERN)], ...], Meta(max_length=64)
    ] = ("infer:*",)
    """What these callers may do: `infer:ENDPOINT`."""
    tier: Annotated[str, Meta(max_length=128)] = ""
    """Their tier; empty for none."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.dns, self.uri, self.common_name))) != 1:
            msg = "needs exactly one of 'dns', 'uri', 'common_name'"
            raise ValueError(msg)


class AuthSpec(SpecPart, frozen=True, kw_only=True):
    """Authentication of callers, besides API keys (`headrace keys create`)."""

    jwt: Annotated[tuple[JwtSpec, ...], Meta(max_length=16)] = ()
    """Identity providers. See JwtSpec."""
    certificates: Annotated[tuple[CertificateSpec, ...], Meta(max_length=256)] = ()
    """Client certificates. See CertificateSpec."""


_TokenWeight = Annotated[float, Meta(ge=0.0, le=1000.0)]


class TokenWeightsSpec(SpecPart, frozen=True, kw_only=True):
    """How many tokens of a limit one token of an answer's usage costs."""

    input: _TokenWeight = 1.0
    """Of an input token that no cache had."""
    cached: _TokenWeight = 1.0
    """Of an input token from the server's cache."""
    output: _TokenWeight = 1.0
    """Of an output token that the caller gets."""
    reasoning: _TokenWeight = 1.0
    """Of an output token of the model's reasoning."""


_TOKEN_LIMITS: Final = (
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "tokens_per_day",
)


class LimitSpec(SpecPart, frozen=True, kw_only=True):
    """Rate limits; null for no limit."""

    requests_per_s: Annotated[float, Meta(gt=0.0, le=_MOST)] | None = None
    """Average rate of requests."""
    burst: Annotated[int, Meta(ge=1, le=_MOST)] | None = None
    """Requests that may come at once; null for what one second allows. Unit: requests."""
    rows_per_s: Annotated[float, Meta(gt=0.0, le=_MOST)] | None = None
    """Average rate of rows in requests."""
    max_concurrent: Annotated[int, Meta(ge=1, le=1000000)] | None = None
    """Concurrent requests. Unit: requests."""
    requests_per_day: Annotated[int, Meta(ge=1, le=10**15)] | None = None
    """Requests from midnight to midnight, UTC."""
    tokens_per_minute: Annotated[float, Meta(gt=0.0, le=_MOST)] | None = None
    """Average rate of input and output tokens of OpenAI's API."""
    input_tokens_per_minute: Annotated[float, Meta(gt=0.0, le=_MOST)] | None = None
    """Average rate of input tokens."""
    output_tokens_per_minute: Annotated[float, Meta(gt=0.0, le=_MOST)] | None = None
    """Average rate of output tokens."""
    tokens_per_day: Annotated[int, Meta(ge=1, le=10**15)] | None = None
    """Input and output tokens from midnight to midnight, UTC."""
    token_weights: TokenWeightsSpec = TokenWeightsSpec()
    """Cost of each kind of token in the limits of tokens. See TokenWeightsSpec."""

    @property
    def of_tokens(self) -> tuple[str, ...]:
        """Return the names of the settings of tokens that are set."""
        default = LimitSpec()
        names = (*_TOKEN_LIMITS, "token_weights")
        return tuple(name for name in names if getattr(self, name) != getattr(default, name))

    @property
    def most_at_once(self) -> int:
        """Return how many requests may come at once: `burst`, else what one second allows."""
        return self.burst or max(math.ceil(self.requests_per_s or 0.0), 1)

    @property
    def needs_service(self) -> bool:
        """Whether only the rate limit service can count it, as all but requests per second."""
        names = ("rows_per_s", "max_concurrent", "requests_per_day", *_TOKEN_LIMITS)
        return any(getattr(self, name) is not None for name in names)

    @property
    def is_unlimited(self) -> bool:
        """Whether there is no limit."""
        return self.requests_per_s is None and not self.needs_service


class EndpointLimitsSpec(SpecPart, frozen=True, kw_only=True):
    """Limits of an endpoint, for all of its callers together."""

    total: Annotated[LimitSpec, FLAT] = LimitSpec()
    max_body_bytes: Annotated[int, Meta(ge=1024, le=2000000000)] | None = None
    """Larger requests get 413; null for the gateway's. Unit: bytes."""
    per_caller: LimitSpec = LimitSpec()
    """Limits of each caller. See LimitSpec."""

    @property
    def is_unlimited(self) -> bool:
        """Whether there is no limit on requests."""
        return self.total.is_unlimited and self.per_caller.is_unlimited

    def is_counted_by_service(self, *, shared: bool) -> bool:
        """Whether the rate limit service counts all of these limits, and the gateway none.

        Only one of the two counts: a request that one refuses would otherwise not be counted by the
        other.
        """
        needed = self.total.needs_service or self.per_caller.needs_service
        return needed or (shared and not self.is_unlimited)


class TierSpec(SpecPart, frozen=True, kw_only=True):
    """Limits of each caller of a tier, over all endpoints."""

    limits: Annotated[LimitSpec, FLAT] = LimitSpec()
    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    """Name by which keys, tokens and rules refer to it."""
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    """Under overload, requests with the lowest priority are refused first."""


class TlsSpec(SpecPart, frozen=True, kw_only=True):
    """Encryption of the gateway's ports; files are reloaded when they change."""

    certificate_file: _File
    """Certificate chain, PEM (relative to the spec file)."""
    key_file: _File
    """Private key of the certificate, PEM, readable by its owner only."""
    client_ca_file: Annotated[str, FileOnly(null=True, min_length=1, max_length=4096)] = ""
    """Authorities whose client certificates are accepted, PEM."""
    require_client_certificate: bool = False
    """Whether every client needs a certificate."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    """Lowest TLS version."""

    def __post_init__(self) -> None:
        if self.require_client_certificate and not self.client_ca_file:
            msg = "'require_client_certificate' needs 'client_ca_file'"
            raise ValueError(msg)


_ORIGIN: Final = re.compile(
    r"\*|https?://((\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
)


def _check_origin(origin: str) -> str:
    if _ORIGIN.fullmatch(origin) is None:
        msg = (
            f"origin {origin[:100]!r} is none of '*', 'https://HOST[:PORT]' in lower case without "
            "a path, and 'https://*.DOMAIN'"
        )
        raise ValueError(msg)
    return origin


_Origin = Annotated[str, Meta(min_length=1, max_length=255), _check_origin]


class CorsSpec(SpecPart, frozen=True, kw_only=True):
    """Pages of other origins whose scripts may call the gateway (CORS)."""

    allow_origins: Annotated[tuple[_Origin, ...], Meta(min_length=1, max_length=64)]
    """Origins of the pages, such as `https://app.example.com`; `https://*.example.com` for all
    subdomains, `*` for every page. Callers authenticate as usual.
    """
    max_age_s: Annotated[int, Meta(ge=0, le=86400)] = 600
    """How long a browser may reuse the answer to a preflight request. Unit: seconds."""


class AliasSpec(SpecPart, frozen=True, kw_only=True):
    """Another name of an endpoint, for callers of OpenAI's API."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)]
    """Value of `model` in a request, such as `gpt-4o-mini` or `openai/gpt-4o`."""
    version: Annotated[str, Meta(pattern=r"^[0-9]{0,18}$")] = ""
    """Version that answers; empty for the endpoint's traffic split."""


class SecuritySpec(SpecPart, frozen=True, kw_only=True):
    """Rules for models that may be loaded, and for addresses of upstreams."""

    require_signature: bool = False
    """Whether a version must be signed by one of `trusted_keys`."""
    trusted_keys: Annotated[tuple[_File, ...], Meta(max_length=64)] = ()
    """Files of public keys, PEM (Ed25519)."""
    upstream_hosts: Annotated[tuple[_Host, ...], Meta(max_length=256)] = ()
    """Hosts that non-admins may name in an upstream: host names, `*.SUFFIX`, addresses, networks;
    empty for private and global unicast addresses.
    """

    def __post_init__(self) -> None:
        if self.require_signature and not self.trusted_keys:
            msg = "'require_signature' needs 'trusted_keys'"
            raise ValueError(msg)


Access = Literal["public"] | tuple[str, ...]
"""`access` of an endpoint: public, or the methods of which a caller must use one."""


class EndpointAccess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Callers that may call one endpoint: those that use one of `any_of`, or all if it is `public`.

    Each of `any_of` is a `Method`, or `jwt:NAME` for one identity provider.
    """

    public: bool = False
    any_of: tuple[str, ...] = (Method.KEY, Method.JWT, Method.CERTIFICATE)


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of caller authentication for the whole gateway, besides API keys."""

    jwt: tuple[JwtSpec, ...] = ()
    certificates: tuple[CertificateSpec, ...] = ()
    tiers: tuple[TierSpec, ...] = ()
    shared_limits: bool = False
    """Whether several gateways share each limit, which the rate limit service then counts."""

    @property
    def are_tiers_counted_by_service(self) -> bool:
        """Whether the rate limit service counts all limits of tiers."""
        limited = [tier.limits for tier in self.tiers if not tier.limits.is_unlimited]
        return any(limits.needs_service for limits in limited) or (
            self.shared_limits and bool(limited)
        )


def endpoint_access(access: Access | None) -> EndpointAccess | None:
    """Return the message to the gateway; None where the spec has no rule."""
    match access:
        case None:
            return None
        case "public":
            return EndpointAccess(public=True)
        case methods:
            return EndpointAccess(any_of=tuple(methods))


def limit_disagreements(document: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield location and message of each mistake in a raw document of any content."""
    gateway = document.get("gateway")
    gateway = gateway if isinstance(gateway, Mapping) else {}
    yield from _tiers(document.get("tiers"))
    yield from _bodies(document.get("endpoints"), gateway.get("max_body_bytes"))
    yield from _addresses(gateway)


def _tiers(tiers: object) -> Iterator[tuple[str, str]]:
    named_tiers = [tier for tier in _items(tiers) if isinstance(tier, Mapping)]
    first_use: dict[str, int] = {}
    for i, tier in enumerate(named_tiers):
        name = tier.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            yield f"tiers[{i}].name", f"{name!r} is already the name of tiers[{first_use[name]}]"
    priorities = {p for tier in named_tiers if isinstance(p := tier.get("priority"), int)}
    above = sum(priority > 0 for priority in priorities)
    below = sum(priority < 0 for priority in priorities)
    for count, maximum, location in ((above, MAX_ABOVE, "above"), (below, MAX_BELOW, "below")):
        if count > maximum:
            yield (
                "tiers",
                (
                    f"have {count} different priorities {location} 0; at most {maximum} can be "
                    "distinguished"
                ),
            )


def unused_tiers(document: Mapping[str, Any]) -> str:
    """Return the mistake of tiers in a spec no endpoint of which identifies its callers, or "".

    The spec is not refused: `--host` beyond loopback, which it does not contain, identifies them.
    """
    rules = [entry.get("access") for entry in document.get("endpoints") or ()]
    is_local = (document.get("gateway") or {}).get("host", "localhost") in _LOOPBACK
    is_open = all(rule == "public" or (rule is None and is_local) for rule in rules)
    if not document.get("tiers") or not rules or not is_open:
        return ""
    return (
        "apply to no request: no endpoint identifies its callers, so a key that is sent is "
        "ignored; set `access: [key]` of the endpoints, or `gateway.host` beyond loopback"
    )


def _bodies(endpoints: object, gateways: object) -> Iterator[tuple[str, str]]:
    limit = gateways if isinstance(gateways, int) else DEFAULT_MAX_BODY_BYTES
    for i, endpoint in enumerate(_items(endpoints)):
        limits = endpoint.get("limits") if isinstance(endpoint, Mapping) else None
        requested = limits.get("max_body_bytes") if isinstance(limits, Mapping) else None
        if isinstance(requested, int) and requested > limit:
            message = (
                f"is {requested}, more than gateway.max_body_bytes ({limit}): raise "
                "gateway.max_body_bytes too"
            )
            yield f"endpoints[{i}].limits.max_body_bytes", message


def _addresses(gateway: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield mistakes in the service's addresses: it is unencrypted, so they must be local."""
    for key in ("limits_service", "limits_listen"):
        address = gateway.get(key)
        if isinstance(address, str) and not _is_local(address):
            message = f"is {address!r}, which is neither unix:/path nor an address of this machine"
            yield f"gateway.{key}", f"{message}, such as 127.0.0.1:9090"
    if gateway.get("limits_service") and gateway.get("limits_listen"):
        message = (
            "cannot be combined with 'limits_service': a gateway that uses another service does"
            " not offer one"
        )
        yield "gateway.limits_listen", message


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return address.startswith("unix:/")
    host, _, port = address.rpartition(":")
    try:
        is_loopback = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
    return is_loopback and port.isdigit() and 0 < int(port) <= 65535  # noqa: PLR2004  # the last port


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
