"""Authentication of callers: filters with their own files (ECDS), and the listener for tokens.

A change of a listener drains its connections; a change of one of these files is in force within a
millisecond and closes no connection.

Envoy rejects a whole configuration if one provider has no usable key, also if a key is just being
revoked; and it accepts symmetric keys, with which any reader of the key can issue tokens.

As a filter of every request, token verification would cost more than all other checks, also for
callers with API keys. So the script asks this listener once about a token, and again periodically.
"""

# ruff: noqa: PLC0415  # cryptography takes longer to load than a gateway without providers to start
import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.core.headers import ISSUER_HEADER
from headrace.core.spec.access import JwtSpec
from headrace.gateway.limits import (
    FLOOD_FILTER,
    LOCAL_FILTER,
    LOCAL_TYPE,
    flood_config,
    local_config,
)
from headrace.gateway.resources import (
    Json,
    Resource,
    any_of,
    connection_manager,
    http_options,
    load_assignment,
    seconds,
    set_header,
    typed,
)
from headrace.gateway.scripts_auth import IDENTIFY as IDENTIFY_SCRIPT
from headrace.gateway.scripts_auth import VERIFY, identify_source
from headrace.gateway.settings import EndpointRoute, EnvoySettings, GatewayPolicy
from headrace.gateway.upstreams import url_cluster

TYPE: Final = "envoy.config.core.v3.TypedExtensionConfig"
"""Type of the content of a filter's file: its configuration with its name."""


@dataclass(frozen=True, slots=True)
class Extension:
    """Filter with its name, its configuration's type, and the file that holds it."""

    filter_name: str
    type_name: str
    file: str

    def resource(self, config: Resource) -> Resource:
        """Return the content of the file."""
        return {"name": self.filter_name, "typed_config": any_of(self.type_name, config)}

    def discovered(self, directory: Path) -> Resource:
        """Return a filter of a chain that reads its configuration from the file."""
        types: Json = [any_of(self.type_name)["@type"]]
        source: Resource = {
            "path_config_source": {"path": str(directory / self.file)},
            "resource_api_version": "V3",
        }
        return {
            "name": self.filter_name,
            "config_discovery": {"config_source": source, "type_urls": types},
        }


JWT: Final = Extension(
    "headrace.jwt",
    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    "jwt.json",
)
IDENTIFY: Final = Extension(
    "headrace.identify", "envoy.extensions.filters.http.lua.v3.Lua", "identify.json"
)
LIMITS: Final = Extension(LOCAL_FILTER, LOCAL_TYPE, "limits.json")
FLOOD: Final = Extension(FLOOD_FILTER, LOCAL_TYPE, "flood.json")
EXTENSIONS: Final = (JWT, IDENTIFY, LIMITS, FLOOD)


def extension_configs(
    policy: GatewayPolicy, endpoints: Sequence[EndpointRoute] = ()
) -> Mapping[Extension, Resource]:
    """Return the configuration of each extension."""
    return {
        JWT: jwt_filter(policy),
        IDENTIFY: identify_filter(policy),
        LIMITS: local_config(policy.access, endpoints),
        FLOOD: flood_config(policy.access, endpoints),
    }


_FETCH_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0


def jwt_filter(policy: GatewayPolicy) -> Resource:
    """Return the filter that verifies one token and reports its issuer.

    It caches no tokens: it would accept a cached one for as long as that is valid, although its key
    was revoked. Envoy accepts no provider without keys: a provider whose file could not be read is
    left out.
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
        case _:  # Envoy requires at least two of them
            requires = {"requires_any": {"requirements": named}}
    return {
        "providers": providers,
        "rules": [{"match": {"prefix": "/"}, "requires": requires}],
    }


def identify_filter(policy: GatewayPolicy) -> Resource:
    """Return the script that decides, with all known keys."""
    return {
        "source_codes": {IDENTIFY_SCRIPT: {"inline_string": identify_source(policy)}},
        "clear_route_cache": False,
    }


def key_set_clusters(settings: EnvoySettings, policy: GatewayPolicy) -> Iterator[Resource]:
    """Yield the clusters from which the keys of identity providers are fetched."""
    for jwt in policy.access.jwt:
        if jwt.jwks_url:
            name, timeout_s = _cluster_name(jwt), _CONNECT_TIMEOUT_S
            yield url_cluster(settings, name, jwt.jwks_url, connect_timeout_s=timeout_s)


def _provider(jwt: JwtSpec, key_set: str) -> Resource:
    scheme: Json = {"name": "authorization", "value_prefix": "Bearer "}  # not in the query string
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
        # Keys are fetched in advance, so that no request waits for them; listeners do not wait
        # either.
        "async_fetch": {"fast_listener": True, "failed_refetch_duration": seconds(_RETRY_S)},
    }


def _cluster_name(jwt: JwtSpec) -> str:
    return f"jwks:{jwt.name}"


_PRIVATE_MODE: Final = 0o600
_CONNECT_TIMEOUT: Final = "1s"


def verify_listener(
    settings: EnvoySettings, configs: Mapping[Extension, Resource] | None
) -> Resource:
    """Return a listener that responds 200 with a token's identity, or 401.

    Args:
        configs: Configurations of extensions; None for their files.
    """
    verifier = (
        JWT.discovered(settings.run_dir)
        if configs is None
        else typed(JWT.filter_name, JWT.type_name, configs[JWT])
    )
    route: Resource = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "response_headers_to_add": [set_header(ISSUER_HEADER, f"%REQ({ISSUER_HEADER})%")],
    }
    filters: Json = [
        verifier,
        typed("headrace.router", "envoy.extensions.filters.http.router.v3.Router"),
    ]
    manager: Resource = {
        "stat_prefix": "headrace_verify",
        "route_config": {
            "name": VERIFY,
            "virtual_hosts": [{"name": VERIFY, "domains": ["*"], "routes": [route]}],
        },
        "http_filters": filters,
    }
    return {
        "name": VERIFY,
        "address": _pipe(settings.verify_socket, mode=_PRIVATE_MODE),
        "filter_chains": [{"filters": [connection_manager(manager)]}],
        "ignore_global_conn_limit": True,  # however many callers there are
    }


def verify_cluster(settings: EnvoySettings) -> Resource:
    """Return the cluster by which the script reaches the listener."""
    return {
        "name": VERIFY,
        "type": "STATIC",
        "connect_timeout": _CONNECT_TIMEOUT,
        **load_assignment(VERIFY, _pipe(settings.verify_socket)),
        **http_options("http2"),
    }


def _pipe(path: Path, **fields: Json) -> Resource:
    return {"pipe": {"path": str(path), **fields}}


_CURVES: Final = {"P-256": 32, "P-384": 48, "P-521": 66}
_PUBLIC: Final = frozenset({"kty", "use", "key_ops", "alg", "kid", "n", "e", "crv", "x", "y"})
_MIN_RSA_BITS: Final = 2048
_MAX_KEYS: Final = 256


def usable_key_set(text: str) -> str:
    """Return the signing keys of a JWK set (RFC 7517), with their public fields only.

    Empty if there are none: tokens of this provider are then rejected.
    """
    try:
        key_set = json.loads(text)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    keys = key_set[:_MAX_KEYS] if isinstance(key_set, list) else []
    usable = [
        {name: value for name, value in key.items() if name in _PUBLIC}
        for key in keys
        if isinstance(key, dict) and _verifies(key)
    ]
    return json.dumps({"keys": usable}) if usable else ""


def _verifies(key: Mapping[str, Any]) -> bool:
    if key.get("use", "sig") != "sig":
        return False
    try:
        match key.get("kty"):
            case "RSA":
                return _number(key["n"]).bit_length() >= _MIN_RSA_BITS and _number(key["e"]) > 1
            case "EC":
                return _is_on_curve(key)
            case "OKP":
                return key["crv"] == "Ed25519" and _is_ed25519(_bytes(key["x"]))
            case _:
                return False
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _is_on_curve(key: Mapping[str, Any]) -> bool:
    """Whether the key's point is on its curve; ValueError if it is not."""
    from cryptography.hazmat.primitives.asymmetric import ec

    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    x, y = _bytes(key["x"]), _bytes(key["y"])
    if {len(x), len(y)} != {_CURVES[key["crv"]]}:
        return False
    ec.EllipticCurvePublicKey.from_encoded_point(curves[key["crv"]], b"\x04" + x + y)
    return True


def _is_ed25519(raw: bytes) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    ed25519.Ed25519PublicKey.from_public_bytes(raw)
    return True


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text))


def _bytes(text: str) -> bytes:
    """Return decoded base64url without padding; ValueError for other text."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
