"""How callers are recognised: the configuration of the filters that do it."""

import ipaddress
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from headrace.core.headers import ISSUER_HEADER
from headrace.core.spec_access import JwtSpec
from headrace.gateway.policy import GatewayPolicy
from headrace.gateway.resources import Json, Resource, seconds, typed
from headrace.gateway.scripts_auth import IDENTIFY, identify_source
from headrace.gateway.settings import GatewaySettings
from headrace.gateway.upstreams import authorities

_TLS: Final = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_FETCH_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0
_PORTS: Final = {"http": 80, "https": 443}


def jwt_filter(policy: GatewayPolicy) -> Resource:
    """Verify one token, and name its issuer.

    It remembers none: it would take one for as long as that is valid, although its key is gone.
    Envoy takes no provider without keys: one whose file could not be read is left out.
    """
    providers: dict[str, Json] = {
        jwt.name: _provider(jwt, policy.key_sets.get(jwt.name, ""))
        for jwt in policy.access.jwt
        if jwt.jwks_url or jwt.name in policy.key_sets
    }
    named: list[Json] = [{"provider_name": name} for name in providers]
    match len(named):
        case 0:
            return {}
        case 1:
            requires = named[0]
        case _:  # Envoy wants two of them at least
            requires = {"requires_any": {"requirements": named}}
    return {
        "providers": providers,
        "rules": [{"match": {"prefix": "/"}, "requires": requires}],
    }


def identify_filter(policy: GatewayPolicy) -> Resource:
    """The script that decides, with all keys that it knows."""
    return {
        "source_codes": {IDENTIFY: {"inline_string": identify_source(policy)}},
        "clear_route_cache": False,
    }


def key_set_clusters(settings: GatewaySettings, policy: GatewayPolicy) -> Iterator[Resource]:
    """Where keys of identity providers are fetched from."""
    for jwt in policy.access.jwt:
        if jwt.jwks_url:
            yield _cluster(settings, jwt)


def _provider(jwt: JwtSpec, key_set: str) -> Resource:
    scheme: Json = {"name": "authorization", "value_prefix": "Bearer "}  # in no query string
    keys: Resource = {"local_jwks": {"inline_string": key_set}}
    if jwt.jwks_url:
        keys = {"remote_jwks": _fetched(jwt)}
    return {
        "issuer": jwt.issuer,
        "audiences": list(jwt.audiences),
        "require_expiration": True,
        "clock_skew_seconds": jwt.clock_skew_s,
        "from_headers": [scheme],
        "claim_to_headers": [{"header_name": ISSUER_HEADER, "claim_name": "iss"}],
        **keys,
    }


def _fetched(jwt: JwtSpec) -> Resource:
    return {
        "http_uri": {
            "uri": jwt.jwks_url,
            "cluster": _cluster_name(jwt),
            "timeout": seconds(_FETCH_TIMEOUT_S),
        },
        "cache_duration": seconds(jwt.jwks_cache_s),
        # Ahead of time, so that no request waits for it; listeners do not wait either.
        "async_fetch": {"fast_listener": True, "failed_refetch_duration": seconds(_RETRY_S)},
    }


def _cluster_name(jwt: JwtSpec) -> str:
    return f"jwks:{jwt.name}"


def _cluster(settings: GatewaySettings, jwt: JwtSpec) -> Resource:
    url = urlsplit(jwt.jwks_url)
    host = url.hostname or ""
    port = url.port or _PORTS[url.scheme]
    name = _cluster_name(jwt)
    address: Resource = {"socket_address": {"address": host, "port_value": port}}
    return {
        "name": name,
        "alt_stat_name": name.replace(".", "+"),
        "type": "STRICT_DNS",
        "dns_lookup_family": "ALL",
        "connect_timeout": seconds(_CONNECT_TIMEOUT_S),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        **({"transport_socket": verified_tls(settings, host)} if url.scheme == "https" else {}),
    }


def verified_tls(settings: GatewaySettings, host: str) -> Resource:
    """Verified for the very name that the URL has: whoever speaks for it makes valid tokens."""
    kind = "IP_ADDRESS" if _is_ip(host) else "DNS"
    names: Json = [{"san_type": kind, "matcher": {"exact": host}}]
    validation: Resource = {
        "trusted_ca": {"filename": str(authorities(settings))},
        "match_typed_subject_alt_names": names,
    }
    context: Resource = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "validation_context": validation,
    }
    sni: Resource = {} if _is_ip(host) else {"sni": host}
    return typed("envoy.transport_sockets.tls", _TLS, {**sni, "common_tls_context": context})


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
