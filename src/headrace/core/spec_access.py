"""What may stand under `auth`, `tiers`, `security`, an endpoint's `access` and `limits`, and `tls`.

Secrets never stand in a spec: it names files, and the environment by `${NAME}` where it says so.
"""

from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, Strict, model_validator

from headrace.core.access_settings import (
    AccessSettings,
    CertificateRule,
    EndpointAccess,
    EndpointLimits,
    JwtSettings,
    LimitSettings,
    Method,
    TierSettings,
    TlsSettings,
)
from headrace.core.names import NAME_PATTERN
from headrace.core.spec_base import SpecModel
from headrace.core.spec_upstream import check_upstream_host

_DAY_S: Final = 86_400.0
_MOST: Final = 1_000_000_000
_SCOPE_PATTERN: Final = r"^[a-z]+:[A-Za-z0-9_.*-]{1,128}(:[0-9*]{1,18})?$"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_METHOD_PATTERN: Final = rf"^(key|jwt|certificate|jwt:{NAME_PATTERN[1:-1]})$"


def is_authentic_url(url: str) -> bool:
    """Whether nobody on the way can answer for `url`: HTTPS, or HTTP on loopback."""
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


Path = Annotated[str, Field(min_length=1, max_length=4096)]
Scopes = Annotated[tuple[Annotated[str, Field(pattern=_SCOPE_PATTERN)], ...], Strict(strict=False)]
Host = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(check_upstream_host)]
Method_ = Annotated[str, Field(pattern=_METHOD_PATTERN)]


class JwtSpec(SpecModel):
    """One identity provider whose tokens are taken; `exp`, issuer and audience are required."""

    name: str = Field(pattern=NAME_PATTERN, description="What it is called here.")
    issuer: str = Field(min_length=1, max_length=1024, description="The token's `iss`, exactly.")
    audiences: Annotated[tuple[str, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=32, description="The token's `aud` holds one of these."
    )
    jwks_url: Annotated[str, AfterValidator(_check_authentic)] | None = Field(
        default=None,
        max_length=2048,
        description="Where its public keys are fetched from: https, or http on loopback.",
    )
    jwks_file: Path | None = Field(
        default=None, description="Or the file that holds them (relative to the spec file)."
    )
    jwks_cache_s: float = Field(
        default=JwtSettings(name="", issuer="", audiences=()).jwks_cache_s,
        ge=1.0,
        le=_DAY_S,
        description="How long fetched keys are used. Unit: seconds.",
    )
    clock_skew_s: int = Field(
        default=5, ge=0, le=300, description="How far clocks may differ. Unit: seconds."
    )
    caller_claim: str = Field(
        default="sub", min_length=1, max_length=128, description="Names the caller."
    )
    scope_claim: str = Field(
        default="scope",
        min_length=1,
        max_length=128,
        description="Its scopes: a list, or words between spaces.",
    )
    tier_claim: str = Field(
        default="tier", min_length=1, max_length=128, description="Its tier, if there are tiers."
    )

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            msg = "needs either 'jwks_url' or 'jwks_file'"
            raise ValueError(msg)
        return self

    def settings(self) -> JwtSettings:
        """The message to the gateway."""
        return JwtSettings(
            name=self.name,
            issuer=self.issuer,
            audiences=self.audiences,
            jwks_url=self.jwks_url or "",
            jwks_file=self.jwks_file or "",
            jwks_cache_s=self.jwks_cache_s,
            clock_skew_s=self.clock_skew_s,
            caller_claim=self.caller_claim,
            scope_claim=self.scope_claim,
            tier_claim=self.tier_claim,
        )


class CertificateSpec(SpecModel):
    """Callers by their client certificate; needs the gateway's `tls.client_ca_file`."""

    name: str = Field(pattern=NAME_PATTERN, description="What these callers are called here.")
    dns: str | None = Field(
        default=None, min_length=1, max_length=255, description="A DNS name in it; * at an end."
    )
    uri: str | None = Field(
        default=None, min_length=1, max_length=2048, description="Or a URI, such as a SPIFFE id."
    )
    common_name: str | None = Field(
        default=None, min_length=1, max_length=255, description="Or its subject's common name."
    )
    scopes: Scopes = Field(
        default=("infer:*",), max_length=64, description="What they may do: `infer:ENDPOINT`."
    )
    tier: str = Field(default="", max_length=128, description="Their tier; empty for none.")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if [self.dns, self.uri, self.common_name].count(None) != 2:  # noqa: PLR2004  # one is given
            msg = "needs exactly one of 'dns', 'uri', 'common_name'"
            raise ValueError(msg)
        return self

    def settings(self) -> CertificateRule:
        """The message to the gateway."""
        return CertificateRule(
            name=self.name,
            dns=self.dns or "",
            uri=self.uri or "",
            common_name=self.common_name or "",
            scopes=self.scopes,
            tier=self.tier,
        )


class AuthSpec(SpecModel):
    """How callers show who they are, besides API keys (`headrace keys create`)."""

    jwt: Annotated[tuple[JwtSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=16, description="Identity providers. See JwtSpec."
    )
    certificates: Annotated[tuple[CertificateSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=256, description="Client certificates. See CertificateSpec."
    )


class LimitSpec(SpecModel):
    """How much may come; null for no limit."""

    requests_per_s: float | None = Field(default=None, gt=0.0, le=_MOST, description="On average.")
    burst: int | None = Field(
        default=None,
        ge=1,
        le=_MOST,
        description="So many at once; null for what one second allows. Unit: requests.",
    )
    rows_per_s: float | None = Field(
        default=None, gt=0.0, le=_MOST, description="Rows of requests, on average."
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Under way at once. Unit: requests."
    )
    requests_per_day: int | None = Field(
        default=None, ge=1, le=10**15, description="From midnight to midnight, UTC."
    )

    def limits(self) -> LimitSettings:
        """The message to the gateway."""
        return LimitSettings(
            requests_per_s=self.requests_per_s,
            burst=self.burst,
            rows_per_s=self.rows_per_s,
            max_concurrent=self.max_concurrent,
            requests_per_day=self.requests_per_day,
        )


class EndpointLimitsSpec(LimitSpec):
    """Limits of an endpoint, for all of its callers together."""

    max_body_bytes: int | None = Field(
        default=None,
        ge=1024,
        le=2_000_000_000,
        description="Larger requests get 413; null for the gateway's. Unit: bytes.",
    )
    per_caller: LimitSpec = Field(
        default=LimitSpec(), description="And for each caller. See LimitSpec."
    )

    def settings(self) -> EndpointLimits:
        """The message to the gateway."""
        return EndpointLimits(
            total=self.limits(),
            per_caller=self.per_caller.limits(),
            max_body_bytes=self.max_body_bytes,
        )


class TierSpec(LimitSpec):
    """What each caller of a tier may do, over all endpoints."""

    name: str = Field(pattern=NAME_PATTERN, description="What keys, tokens and rules call it.")
    priority: int = Field(
        default=0, ge=-100, le=100, description="Under overload the lowest is refused first."
    )

    def settings(self) -> TierSettings:
        """The message to the gateway."""
        return TierSettings(name=self.name, limits=self.limits(), priority=self.priority)


class TlsSpec(SpecModel):
    """Encryption of the gateway's ports; files are read again when they are replaced."""

    certificate_file: Path = Field(description="The chain, PEM (relative to the spec file).")
    key_file: Path = Field(description="Its private key, PEM, readable by its owner only.")
    client_ca_file: Path | None = Field(
        default=None, description="Authorities whose client certificates are taken, PEM."
    )
    require_client_certificate: bool = Field(
        default=False, description="Whether nobody connects without one."
    )
    min_version: Literal["1.2", "1.3"] = Field(default="1.2", description="Of TLS.")

    @model_validator(mode="after")
    def _has_authorities(self) -> Self:
        if self.require_client_certificate and self.client_ca_file is None:
            msg = "'require_client_certificate' needs 'client_ca_file'"
            raise ValueError(msg)
        return self

    def settings(self) -> TlsSettings:
        """The message to the gateway."""
        return TlsSettings(
            certificate_file=self.certificate_file,
            key_file=self.key_file,
            client_ca_file=self.client_ca_file or "",
            require_client_certificate=self.require_client_certificate,
            min_version=self.min_version,
        )


class SecuritySpec(SpecModel):
    """What may be loaded, and where upstreams may be."""

    require_signature: bool = Field(
        default=False, description="Whether a version has to be signed by one of `trusted_keys`."
    )
    trusted_keys: Annotated[tuple[Path, ...], Strict(strict=False)] = Field(
        default=(), max_length=64, description="Files of public keys, PEM (Ed25519)."
    )
    upstream_hosts: Annotated[tuple[Host, ...], Strict(strict=False)] = Field(
        default=(),
        max_length=256,
        description="Hosts that an upstream may have unless an admin names it: host names,"
        " `*.SUFFIX`, addresses, networks; empty for private and global unicast addresses.",
    )

    @model_validator(mode="after")
    def _trusts_somebody(self) -> Self:
        if self.require_signature and not self.trusted_keys:
            msg = "'require_signature' needs 'trusted_keys'"
            raise ValueError(msg)
        return self


Access = Literal["public"] | Annotated[tuple[Method_, ...], Strict(strict=False)]


def endpoint_access(access: Access | None) -> EndpointAccess | None:
    """The message to the gateway; None where the spec says nothing."""
    match access:
        case None:
            return None
        case "public":
            return EndpointAccess(public=True)
        case methods:
            return EndpointAccess(any_of=tuple(methods))


def access_settings(auth: AuthSpec, tiers: tuple[TierSpec, ...], *, shared: bool) -> AccessSettings:
    """What the whole gateway is told of callers."""
    return AccessSettings(
        jwt=tuple(jwt.settings() for jwt in auth.jwt),
        certificates=tuple(rule.settings() for rule in auth.certificates),
        tiers=tuple(tier.settings() for tier in tiers),
        shared_limits=shared,
    )


__all__ = [
    "Access",
    "AuthSpec",
    "CertificateSpec",
    "EndpointLimitsSpec",
    "JwtSpec",
    "LimitSpec",
    "Method",
    "SecuritySpec",
    "TierSpec",
    "TlsSpec",
    "access_settings",
    "endpoint_access",
]
