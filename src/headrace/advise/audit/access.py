"""Checks of access control: authentication, roles, tokens and API keys."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from headrace.advise.audit.check import (
    Hit,
    check,
    endpoints,
    exposed,
    files_of,
    host_of,
    shown,
    upstreams,
)
from headrace.advise.audit.facts import AuditFacts, FindingSeverity, Need
from headrace.core.names import is_loopback_url

_LONGEST_SKEW_S: Final = 60
_LONGEST_JWKS_CACHE_S: Final = 3600.0
_SHORTEST_RSA_BITS: Final = 2048
_SHARED_AUDIENCES: Final = frozenset(
    {"*", "account", "api", "api://default", "audience", "default", "public", "test"}
)
"""Audiences that identity providers put into every token by default."""
_EXAMPLE_HOSTS: Final = ("example.com", "example.net", "example.org", "example")
_PLACEHOLDERS: Final = ("changeme", "your-domain", "yourdomain", "your-tenant", "todo")
_WITH_KEYS: Final = "access: [key]"


@check(
    "HR001",
    FindingSeverity.CRITICAL,
    "An endpoint is open to the whole network",
    reason="Any host that reaches the gateway can call the model, copy it by querying, and exhaust "
    "it.",
    fix="Give the endpoint `access: [key]` (or jwt, certificate), or bind the gateway to "
    "127.0.0.1.",
)
def _open_beyond(facts: AuditFacts) -> Iterator[Hit]:
    beyond = exposed(facts, "gateway")
    for location, endpoint in endpoints(facts.spec):
        if endpoint.access == "public" and beyond:
            yield Hit(
                f"{location}.access",
                f"endpoint '{endpoint.name}' has `access: public`, and the gateway listens on "
                f"{shown(beyond)}",
                fix=_WITH_KEYS,
            )


@check(
    "HR002",
    FindingSeverity.MEDIUM,
    "An endpoint is public, but the gateway listens on loopback only",
    reason="If the gateway is later bound to another address, the endpoint is open to the network.",
    fix="Give the endpoint `access: [key]`.",
)
def _public_here(facts: AuditFacts) -> Iterator[Hit]:
    if exposed(facts, "gateway"):
        return
    for location, endpoint in endpoints(facts.spec):
        if endpoint.access == "public":
            evidence = (
                f"endpoint '{endpoint.name}' has `access: public`; the gateway is on loopback"
            )
            yield Hit(f"{location}.access", evidence, fix=_WITH_KEYS)


@check(
    "HR003",
    FindingSeverity.LOW,
    "An endpoint does not authenticate callers on this machine",
    reason="Every user and process of this machine can call it, including web pages in a browser.",
    fix="Give the endpoint `access: [key]`.",
)
def _requires_no_credential(facts: AuditFacts) -> Iterator[Hit]:
    if exposed(facts, "gateway"):
        return  # there it asks for a key, a token or a certificate
    for location, endpoint in endpoints(facts.spec):
        if endpoint.access is None:
            yield Hit(
                f"{location}.access",
                f"endpoint '{endpoint.name}' does not set `access`, so every process "
                "on this machine may call it",
                fix=_WITH_KEYS,
            )


@check(
    "HR004",
    FindingSeverity.MEDIUM,
    "An endpoint accepts no callers",
    reason="An empty list of methods refuses every caller, which tempts users to set `public`.",
    fix="Set the methods: `access: [key, jwt]`.",
)
def _no_access(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.access == ():
            evidence = f"endpoint '{endpoint.name}' has `access: []`"
            yield Hit(f"{location}.access", evidence, fix=_WITH_KEYS)


@check(
    "HR005",
    FindingSeverity.HIGH,
    "Certificates are accepted, but there is no client CA",
    reason="Without an authority no client certificate can be verified, so all are refused.",
    fix="Set `gateway.tls.client_ca_file`.",
)
def _no_client_ca(facts: AuditFacts) -> Iterator[Hit]:
    tls = facts.spec.gateway.tls
    if tls is not None and tls.client_ca_file:
        return
    fix = "gateway:\n  tls:\n    client_ca_file: ./clients-ca.pem"
    if facts.spec.auth.certificates:
        rules = ", ".join(f"'{rule.name}'" for rule in facts.spec.auth.certificates)
        evidence = f"rules for certificates ({rules}), and no `gateway.tls.client_ca_file`"
        yield Hit("auth.certificates", evidence, fix=fix)
        return
    for location, endpoint in endpoints(facts.spec):
        if isinstance(endpoint.access, tuple) and "certificate" in endpoint.access:
            evidence = f"endpoint '{endpoint.name}' takes certificates, and there is no client CA"
            yield Hit(f"{location}.access", evidence, fix=fix)


@check(
    "HR006",
    FindingSeverity.MEDIUM,
    "An endpoint accepts tokens of an unknown identity provider",
    reason="No token can be verified, so the endpoint refuses all of them.",
    fix="Define the provider under `auth.jwt`, or remove the method from `access`.",
)
def _no_provider(facts: AuditFacts) -> Iterator[Hit]:
    providers = {provider.name for provider in facts.spec.auth.jwt}
    available = ", ".join(sorted(providers)) or "none"
    for location, endpoint in endpoints(facts.spec):
        for method in endpoint.access if isinstance(endpoint.access, tuple) else ():
            kind, _, name = method.partition(":")
            if kind == "jwt" and (name not in providers if name else not providers):
                evidence = (
                    f"endpoint '{endpoint.name}' takes `{method}`; identity providers: {available}"
                )
                yield Hit(f"{location}.access", evidence)


@check(
    "HR007",
    FindingSeverity.HIGH,
    "An identity provider is called without encryption",
    reason="An attacker on the path can return other keys and sign any token.",
    fix="Use https:// in `issuer`.",
)
def _over_http(facts: AuditFacts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        url = provider.issuer
        if url.startswith("http://") and not is_loopback_url(url):
            yield Hit(
                f"auth.jwt[{i}].issuer",
                f"provider '{provider.name}' is at {url}",
                fix=f"issuer: https://{url.removeprefix('http://')}",
            )


@check(
    "HR008",
    FindingSeverity.MEDIUM,
    "An audience is shared with other systems",
    reason="A token issued for any other system of this provider is accepted here too.",
    fix="Register an audience for this system at the provider: `audiences: "
    "[https://inference.your.company]`.",
)
def _shared_audience(facts: AuditFacts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        for j, audience in enumerate(provider.audiences):
            if audience.lower() in _SHARED_AUDIENCES or audience == provider.issuer:
                yield Hit(
                    f"auth.jwt[{i}].audiences[{j}]",
                    f"provider '{provider.name}' takes tokens for {audience!r}",
                )


@check(
    "HR009",
    FindingSeverity.MEDIUM,
    "Expired tokens are accepted for a long time",
    reason="A stolen token stays valid longer; synchronized clocks differ by less than 5 s.",
    fix="clock_skew_s: 5",
)
def _skew(facts: AuditFacts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        if provider.clock_skew_s > _LONGEST_SKEW_S:
            yield Hit(
                f"auth.jwt[{i}].clock_skew_s",
                f"provider '{provider.name}': {provider.clock_skew_s} s",
            )


@check(
    "HR010",
    FindingSeverity.MEDIUM,
    "A provider's keys are cached for a long time",
    reason="A key that the provider revoked is trusted for as long.",
    fix="jwks_cache_s: 300",
)
def _long_cache(facts: AuditFacts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        if provider.jwks_url and provider.jwks_cache_s > _LONGEST_JWKS_CACHE_S:
            yield Hit(
                f"auth.jwt[{i}].jwks_cache_s",
                f"provider '{provider.name}': {provider.jwks_cache_s:g} s",
            )


@check(
    "HR011",
    FindingSeverity.HIGH,
    "An identity provider's key is weak",
    reason="A short RSA key can be broken, and any holder of a shared secret can sign tokens.",
    fix="Use ES256, EdDSA, or RSA of at least 2048 bits at the provider.",
    needs=(Need.SPEC, Need.FILES),
)
def _weak_jwks(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in files_of(facts, "jwks"):
        for key in file.keys:
            weak = key.kind == "RSA" and key.bits < _SHORTEST_RSA_BITS
            if weak or key.kind == "oct":
                size = f" of {key.bits} bits" if key.bits else ""
                description = (
                    "a shared secret (`oct`)" if key.kind == "oct" else f"an RSA key{size}"
                )
                yield Hit(named.location, f"{named.path} holds {description}")


@check(
    "HR012",
    FindingSeverity.MEDIUM,
    "A name looks like an example from documentation",
    reason="A copied example does not work, or belongs to another organization.",
    fix="Set the real host.",
)
def _examples(facts: AuditFacts) -> Iterator[Hit]:
    urls = [
        (f"auth.jwt[{i}].{name}", value)
        for i, provider in enumerate(facts.spec.auth.jwt)
        for name, value in (("issuer", provider.issuer), ("jwks_url", provider.jwks_url or ""))
    ]
    urls += [(f"{location}.url", upstream.url) for location, upstream in upstreams(facts.spec)]
    for source, value in urls:
        host = (host_of(value) or value).lower()
        is_example = any(host == name or host.endswith(f".{name}") for name in _EXAMPLE_HOSTS)
        if is_example or any(word in host for word in _PLACEHOLDERS):
            yield Hit(source, value)


@check(
    "HR013",
    FindingSeverity.HIGH,
    "A rule accepts every certificate of the client CA",
    reason="Every machine that the authority has certified can call.",
    fix='Restrict it: `dns: "*.scoring.internal"`.',
)
def _any_certificate(facts: AuditFacts) -> Iterator[Hit]:
    for i, rule in enumerate(facts.spec.auth.certificates):
        for name in ("dns", "uri", "common_name"):
            pattern = getattr(rule, name)
            if pattern and not pattern.strip("*.:/"):
                evidence = f"rule '{rule.name}' takes `{name}: {pattern}`"
                yield Hit(f"auth.certificates[{i}].{name}", evidence)


@check(
    "HR014",
    FindingSeverity.LOW,
    "Certificates may call every endpoint",
    reason="Endpoints that are added later are open to these callers too.",
    fix="Name the endpoints in `scopes`.",
)
def _certificates_may_all(facts: AuditFacts) -> Iterator[Hit]:
    names = [endpoint.name for endpoint in facts.spec.endpoints]
    for i, rule in enumerate(facts.spec.auth.certificates):
        if "infer:*" in rule.scopes:
            scopes = ", ".join(f'"infer:{name}"' for name in names[:3])
            yield Hit(
                f"auth.certificates[{i}].scopes",
                f"rule '{rule.name}' grants `infer:*`",
                fix=f"scopes: [{scopes}]" if scopes else "",
            )


@check(
    "HR015",
    FindingSeverity.MEDIUM,
    "A rule refers to an undefined tier",
    reason="These callers then have no tier limits.",
    fix="Define the tier under `tiers`, or correct its name.",
)
def _unknown_tier(facts: AuditFacts) -> Iterator[Hit]:
    tiers = {tier.name for tier in facts.spec.tiers}
    for i, rule in enumerate(facts.spec.auth.certificates):
        if rule.tier and rule.tier not in tiers:
            available = ", ".join(sorted(tiers)) or "none"
            evidence = f"rule '{rule.name}' names the tier '{rule.tier}'; tiers: {available}"
            yield Hit(f"auth.certificates[{i}].tier", evidence)


_OLD: Final = timedelta(days=90)


@check(
    "HR021",
    FindingSeverity.MEDIUM,
    "An API key never expires",
    reason="A leaked key stays valid forever.",
    fix="Create a key that expires (`headrace keys create ... --expires-in 90d`), switch the "
    "caller to it, revoke the old one.",
    needs=(Need.KEYS,),
)
def _no_expiry(facts: AuditFacts) -> Iterator[Hit]:
    for key in facts.keys:
        if key.expires is None:
            yield Hit(f"key {key.name}", f"key '{key.name}' never expires")


@check(
    "HR022",
    FindingSeverity.LOW,
    "An API key is not used",
    reason="Abuse of an unused key is hard to notice.",
    fix="Revoke it.",
    needs=(Need.KEYS,),
)
def _unused(facts: AuditFacts) -> Iterator[Hit]:
    for key in facts.keys:
        since = key.last_used or key.created
        if not key.records_use or since is None or facts.now - since <= _OLD:
            continue
        used = f"was last used on {key.last_used:%Y-%m-%d}" if key.last_used else "was never used"
        yield Hit(
            f"key {key.name}", f"key '{key.name}' {used}", fix=f"headrace keys revoke {key.name}"
        )


@check(
    "HR023",
    FindingSeverity.LOW,
    "An API key may call every endpoint",
    reason="A leak of the key exposes all endpoints, including future ones.",
    fix="Create a key per caller, with `infer:ENDPOINT` scopes.",
    needs=(Need.KEYS,),
)
def _may_all(facts: AuditFacts) -> Iterator[Hit]:
    for key in facts.keys:
        if "infer:*" in key.scopes:
            yield Hit(f"key {key.name}", f"key '{key.name}' has the scope `infer:*`")


@check(
    "HR024",
    FindingSeverity.LOW,
    "An API key is older than 90 days",
    reason="The older a key, the more copies of it exist in logs, scripts and histories.",
    fix="Create a new key, switch the caller to it, revoke the old one.",
    needs=(Need.KEYS,),
)
def _old(facts: AuditFacts) -> Iterator[Hit]:
    for key in facts.keys:
        if key.created is not None and facts.now - key.created > _OLD:
            days = (facts.now - key.created).days
            evidence = f"key '{key.name}' is of {key.created:%Y-%m-%d}, {days} days old"
            yield Hit(f"key {key.name}", evidence)


@check(
    "HR025",
    FindingSeverity.MEDIUM,
    "A token of the management API never expires",
    reason="A token found in an old pipeline can change what is served.",
    fix="Create a token that expires, switch the program to it, revoke the old one.",
    needs=(Need.TOKENS,),
)
def _endless_token(facts: AuditFacts) -> Iterator[Hit]:
    for token in facts.tokens:
        if token.expires is None:
            yield Hit(f"token {token.id}", f"a token of '{token.owner}' never expires")
