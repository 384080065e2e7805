"""Checks of who may call: authentication, roles, tokens and API keys."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from headrace.advise.check import (
    Check,
    Hit,
    endpoints,
    exposed,
    files_of,
    host_of,
    is_loopback_url,
    shown,
    upstreams,
)
from headrace.advise.facts import Facts, Need, Severity

_LONGEST_SKEW_S: Final = 60
_LONGEST_JWKS_CACHE_S: Final = 3600.0
_SHORTEST_RSA_BITS: Final = 2048
_SHARED_AUDIENCES: Final = frozenset(
    {"*", "account", "api", "api://default", "audience", "default", "public", "test"}
)
"""What identity providers put into every token unless they are told otherwise."""
_EXAMPLE_HOSTS: Final = ("example.com", "example.net", "example.org", "example")
_PLACEHOLDERS: Final = ("changeme", "your-domain", "yourdomain", "your-tenant", "todo")
_WITH_KEYS: Final = "access: [key]"


def _open_beyond(facts: Facts) -> Iterator[Hit]:
    beyond = exposed(facts, "gateway")
    for place, endpoint in endpoints(facts.spec):
        if endpoint.access == "public" and beyond:
            yield Hit(
                where=f"{place}.access",
                seen=f"endpoint '{endpoint.name}' has `access: public`, and the gateway listens on "
                f"{shown(beyond)}",
                fix=_WITH_KEYS,
            )


def _public_here(facts: Facts) -> Iterator[Hit]:
    if exposed(facts, "gateway"):
        return
    for place, endpoint in endpoints(facts.spec):
        if endpoint.access == "public":
            seen = f"endpoint '{endpoint.name}' has `access: public`; the gateway is on loopback"
            yield Hit(where=f"{place}.access", seen=seen, fix=_WITH_KEYS)


def _asks_nobody(facts: Facts) -> Iterator[Hit]:
    if exposed(facts, "gateway"):
        return  # there it asks for a key, a token or a certificate
    for place, endpoint in endpoints(facts.spec):
        if endpoint.access is None:
            yield Hit(
                where=f"{place}.access",
                seen=f"endpoint '{endpoint.name}' says nothing about `access`, so that everybody "
                "on this machine may call it",
                fix=_WITH_KEYS,
            )


def _nobody_may(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.access == ():
            seen = f"endpoint '{endpoint.name}' has `access: []`"
            yield Hit(where=f"{place}.access", seen=seen, fix=_WITH_KEYS)


def _no_client_ca(facts: Facts) -> Iterator[Hit]:
    tls = facts.spec.gateway.tls
    if tls is not None and tls.client_ca_file:
        return
    fix = "gateway:\n  tls:\n    client_ca_file: ./clients-ca.pem"
    if facts.spec.auth.certificates:
        rules = ", ".join(f"'{rule.name}'" for rule in facts.spec.auth.certificates)
        seen = f"rules for certificates ({rules}), and no `gateway.tls.client_ca_file`"
        yield Hit(where="auth.certificates", seen=seen, fix=fix)
        return
    for place, endpoint in endpoints(facts.spec):
        if isinstance(endpoint.access, tuple) and "certificate" in endpoint.access:
            seen = f"endpoint '{endpoint.name}' takes certificates, and there is no client CA"
            yield Hit(where=f"{place}.access", seen=seen, fix=fix)


def _no_provider(facts: Facts) -> Iterator[Hit]:
    known = {provider.name for provider in facts.spec.auth.jwt}
    there = ", ".join(sorted(known)) or "none"
    for place, endpoint in endpoints(facts.spec):
        for method in endpoint.access if isinstance(endpoint.access, tuple) else ():
            kind, _, name = method.partition(":")
            if kind == "jwt" and (name not in known if name else not known):
                seen = f"endpoint '{endpoint.name}' takes `{method}`; identity providers: {there}"
                yield Hit(where=f"{place}.access", seen=seen)


def _over_http(facts: Facts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        url = provider.issuer
        if url.startswith("http://") and not is_loopback_url(url):
            yield Hit(
                where=f"auth.jwt[{i}].issuer",
                seen=f"provider '{provider.name}' is at {url}",
                fix=f"issuer: https://{url.removeprefix('http://')}",
            )


def _shared_audience(facts: Facts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        for j, audience in enumerate(provider.audiences):
            if audience.lower() in _SHARED_AUDIENCES or audience == provider.issuer:
                yield Hit(
                    where=f"auth.jwt[{i}].audiences[{j}]",
                    seen=f"provider '{provider.name}' takes tokens for {audience!r}",
                )


def _skew(facts: Facts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        if provider.clock_skew_s > _LONGEST_SKEW_S:
            yield Hit(
                where=f"auth.jwt[{i}].clock_skew_s",
                seen=f"provider '{provider.name}': {provider.clock_skew_s} s",
            )


def _long_cache(facts: Facts) -> Iterator[Hit]:
    for i, provider in enumerate(facts.spec.auth.jwt):
        if provider.jwks_url and provider.jwks_cache_s > _LONGEST_JWKS_CACHE_S:
            yield Hit(
                where=f"auth.jwt[{i}].jwks_cache_s",
                seen=f"provider '{provider.name}': {provider.jwks_cache_s:g} s",
            )


def _weak_jwks(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, "jwks"):
        for key in file.keys:
            weak = key.kind == "RSA" and key.bits < _SHORTEST_RSA_BITS
            if weak or key.kind == "oct":
                size = f" of {key.bits} bits" if key.bits else ""
                what = "a shared secret (`oct`)" if key.kind == "oct" else f"an RSA key{size}"
                yield Hit(where=named.place, seen=f"{named.path} holds {what}")


def _examples(facts: Facts) -> Iterator[Hit]:
    found = [
        (f"auth.jwt[{i}].{name}", value)
        for i, provider in enumerate(facts.spec.auth.jwt)
        for name, value in (("issuer", provider.issuer), ("jwks_url", provider.jwks_url or ""))
    ]
    found += [(f"{place}.url", upstream.url) for place, upstream in upstreams(facts.spec)]
    for place, value in found:
        host = (host_of(value) or value).lower()
        is_example = any(host == name or host.endswith(f".{name}") for name in _EXAMPLE_HOSTS)
        if is_example or any(word in host for word in _PLACEHOLDERS):
            yield Hit(where=place, seen=value)


def _any_certificate(facts: Facts) -> Iterator[Hit]:
    for i, rule in enumerate(facts.spec.auth.certificates):
        for name in ("dns", "uri", "common_name"):
            pattern = getattr(rule, name)
            if pattern and not pattern.strip("*.:/"):
                seen = f"rule '{rule.name}' takes `{name}: {pattern}`"
                yield Hit(where=f"auth.certificates[{i}].{name}", seen=seen)


def _certificates_may_all(facts: Facts) -> Iterator[Hit]:
    names = [endpoint.name for endpoint in facts.spec.endpoints]
    for i, rule in enumerate(facts.spec.auth.certificates):
        if "infer:*" in rule.scopes:
            wanted = ", ".join(f'"infer:{name}"' for name in names[:3])
            yield Hit(
                where=f"auth.certificates[{i}].scopes",
                seen=f"rule '{rule.name}' grants `infer:*`",
                fix=f"scopes: [{wanted}]" if wanted else "",
            )


def _unknown_tier(facts: Facts) -> Iterator[Hit]:
    known = {tier.name for tier in facts.spec.tiers}
    for i, rule in enumerate(facts.spec.auth.certificates):
        if rule.tier and rule.tier not in known:
            there = ", ".join(sorted(known)) or "none"
            seen = f"rule '{rule.name}' names the tier '{rule.tier}'; tiers: {there}"
            yield Hit(where=f"auth.certificates[{i}].tier", seen=seen)


_CALLER_CHECKS: Final = (
    Check(
        id="HR001",
        title="An endpoint is open to everybody on the network",
        severity=Severity.CRITICAL,
        why="Whoever reaches the gateway may call the model, copy it by asking, and use it up.",
        fix="Give the endpoint `access: [key]` (or jwt, certificate), or bind the gateway to "
        "127.0.0.1.",
        needs=(Need.SPEC,),
        find=_open_beyond,
    ),
    Check(
        id="HR002",
        title="An endpoint is public, though only this machine reaches it",
        severity=Severity.MEDIUM,
        why="On the day the gateway is bound to another address, it is open to everybody.",
        fix="Give the endpoint `access: [key]`.",
        needs=(Need.SPEC,),
        find=_public_here,
    ),
    Check(
        id="HR003",
        title="An endpoint asks nobody on this machine",
        severity=Severity.LOW,
        why="Every user and process of this machine may call it, a browser's pages among them.",
        fix="Give the endpoint `access: [key]`.",
        needs=(Need.SPEC,),
        find=_asks_nobody,
    ),
    Check(
        id="HR004",
        title="An endpoint lets nobody in",
        severity=Severity.MEDIUM,
        why="An empty list of methods refuses every caller; people then reach for `public`.",
        fix="Name the methods: `access: [key, jwt]`.",
        needs=(Need.SPEC,),
        find=_nobody_may,
    ),
    Check(
        id="HR005",
        title="Certificates are accepted, but no client CA says whose",
        severity=Severity.HIGH,
        why="Without an authority no client certificate can be verified, so none is taken.",
        fix="Set `gateway.tls.client_ca_file`.",
        needs=(Need.SPEC,),
        find=_no_client_ca,
    ),
    Check(
        id="HR006",
        title="An endpoint takes tokens of an identity provider that is not known",
        severity=Severity.MEDIUM,
        why="No token can be verified, so the endpoint refuses what it says it takes.",
        fix="Describe the provider under `auth.jwt`, or take the method out of `access`.",
        needs=(Need.SPEC,),
        find=_no_provider,
    ),
    Check(
        id="HR007",
        title="An identity provider is reached without encryption",
        severity=Severity.HIGH,
        why="Whoever sits between may answer with keys of his own and sign any token.",
        fix="Use https:// in `issuer`.",
        needs=(Need.SPEC,),
        find=_over_http,
    ),
    Check(
        id="HR008",
        title="An audience is shared with other systems",
        severity=Severity.MEDIUM,
        why="A token that was made out to any other system of this provider is taken here, too.",
        fix="Register an audience of this system's own at the provider: "
        "`audiences: [https://inference.your.company]`.",
        needs=(Need.SPEC,),
        find=_shared_audience,
    ),
    Check(
        id="HR009",
        title="Expired tokens are taken for long",
        severity=Severity.MEDIUM,
        why="A stolen token lives so much longer; clocks that are kept differ by less than 5 s.",
        fix="clock_skew_s: 5",
        needs=(Need.SPEC,),
        find=_skew,
    ),
    Check(
        id="HR010",
        title="A provider's keys are kept for long",
        severity=Severity.MEDIUM,
        why="A key that the provider took back is believed for as long.",
        fix="jwks_cache_s: 300",
        needs=(Need.SPEC,),
        find=_long_cache,
    ),
    Check(
        id="HR011",
        title="An identity provider's key is weak",
        severity=Severity.HIGH,
        why="A short RSA key can be broken, and who holds a shared secret can sign tokens himself.",
        fix="Let the provider sign with ES256, EdDSA, or RSA of 2048 bits and more.",
        needs=(Need.SPEC, Need.FILES),
        find=_weak_jwks,
    ),
    Check(
        id="HR012",
        title="A name looks like a documentation's example",
        severity=Severity.MEDIUM,
        why="What was copied and not changed does not work, or belongs to somebody else.",
        fix="Put the real host there.",
        needs=(Need.SPEC,),
        find=_examples,
    ),
    Check(
        id="HR013",
        title="A rule takes every certificate of the client CA",
        severity=Severity.HIGH,
        why="Each machine that the authority ever certified may call.",
        fix='Say whose: `dns: "*.scoring.internal"`.',
        needs=(Need.SPEC,),
        find=_any_certificate,
    ),
    Check(
        id="HR014",
        title="Certificates may call every endpoint",
        severity=Severity.LOW,
        why="Endpoints that are added later are open to these callers, too.",
        fix="Name the endpoints in `scopes`.",
        needs=(Need.SPEC,),
        find=_certificates_may_all,
    ),
    Check(
        id="HR015",
        title="A rule names a tier that there is not",
        severity=Severity.MEDIUM,
        why="These callers then have no tier's limits.",
        fix="Describe the tier under `tiers`, or correct its name.",
        needs=(Need.SPEC,),
        find=_unknown_tier,
    ),
)


_OLD: Final = timedelta(days=90)


def _no_expiry(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        if key.expires is None:
            yield Hit(where=f"key {key.name}", seen=f"key '{key.name}' never expires")


def _unused(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        since = key.last_used or key.created
        if not key.tells_use or since is None or facts.now - since <= _OLD:
            continue
        used = f"was last used on {key.last_used:%Y-%m-%d}" if key.last_used else "was never used"
        yield Hit(
            where=f"key {key.name}",
            seen=f"key '{key.name}' {used}",
            fix=f"headrace keys revoke {key.name}",
        )


def _may_all(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        if "infer:*" in key.scopes:
            yield Hit(where=f"key {key.name}", seen=f"key '{key.name}' has the scope `infer:*`")


def _old(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        if key.created is not None and facts.now - key.created > _OLD:
            days = (facts.now - key.created).days
            seen = f"key '{key.name}' is of {key.created:%Y-%m-%d}, {days} days old"
            yield Hit(where=f"key {key.name}", seen=seen)


def _endless_token(facts: Facts) -> Iterator[Hit]:
    for token in facts.tokens:
        if token.expires is None:
            yield Hit(where=f"token {token.id}", seen=f"a token of '{token.owner}' never expires")


CHECKS: Final = (
    *_CALLER_CHECKS,
    Check(
        id="HR021",
        title="An API key never expires",
        severity=Severity.MEDIUM,
        why="A key that leaked years ago still opens the door.",
        fix="Make a new one with an end (`headrace keys create ... --expires-in 90d`), move the "
        "caller to it, revoke the old one.",
        needs=(Need.KEYS,),
        find=_no_expiry,
    ),
    Check(
        id="HR022",
        title="An API key is not used",
        severity=Severity.LOW,
        why="Nobody would miss it, and nobody would notice that it is used by somebody else.",
        fix="Revoke it.",
        needs=(Need.KEYS,),
        find=_unused,
    ),
    Check(
        id="HR023",
        title="An API key may call every endpoint",
        severity=Severity.LOW,
        why="What leaks with it is everything, endpoints of the future included.",
        fix="Make one for each caller, with `infer:ENDPOINT` scopes.",
        needs=(Need.KEYS,),
        find=_may_all,
    ),
    Check(
        id="HR024",
        title="An API key was not changed for 90 days",
        severity=Severity.LOW,
        why="The longer a key lives, the more copies of it lie in logs, scripts and histories.",
        fix="Make a new one, move the caller to it, revoke the old one.",
        needs=(Need.KEYS,),
        find=_old,
    ),
    Check(
        id="HR025",
        title="A token of the management API never expires",
        severity=Severity.MEDIUM,
        why="Whoever finds it in an old pipeline changes what is served.",
        fix="Make a new one with an end, move the program to it, revoke the old one.",
        needs=(Need.TOKENS,),
        find=_endless_token,
    ),
)
