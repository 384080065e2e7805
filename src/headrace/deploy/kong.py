"""Export of a spec as Kong's declarative configuration, with its plugins and consumers.

https://developer.konghq.com/gateway/entities/

Several authentication methods are alternatives in a spec. Kong requires all of its plugins, so each
passes unauthenticated callers as an anonymous consumer, which another plugin refuses.
https://developer.konghq.com/gateway/authentication/#using-multiple-authentication-methods
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headrace.core import InvalidArgumentError
from headrace.core.headers import INTERNAL_HEADERS
from headrace.core.spec.access import JwtSpec, LimitSpec, Method
from headrace.deploy.export import Body, Export, ExportDocument, addresses_of, finish
from headrace.deploy.facts import Endpoint, ExportFacts, Version
from headrace.deploy.features import ExportNote, ExportTarget, Loss
from headrace.deploy.gateway_api import GRACE_S, MODEL_HEADER, SERVICE

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}


def public_keys(text: str) -> list[PublicKey]:
    """Return the RSA and EC keys of a key set, in order; others are skipped.

    Raises:
        InvalidArgumentError: The text is not a key set, or contains a broken key.
    """
    try:
        entries = json.loads(text)["keys"]
        return [key for entry in entries if (key := _key(entry)) is not None]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise InvalidArgumentError(f"not a JSON Web Key Set (RFC 7517): {error}") from error


def _key(entry: dict[str, Any]) -> PublicKey | None:
    if entry.get("use", "sig") != "sig":
        return None
    match entry.get("kty"):
        case "RSA":
            return rsa.RSAPublicNumbers(_number(entry["e"]), _number(entry["n"])).public_key()
        case "EC" if entry.get("crv") in _CURVES:
            curve = _CURVES[entry["crv"]]
            point = ec.EllipticCurvePublicNumbers(_number(entry["x"]), _number(entry["y"]), curve)
            return point.public_key()
        case _:
            return None


def _number(text: str) -> int:
    padded = text + "=" * (-len(text) % 4)
    return int.from_bytes(base64.urlsafe_b64decode(padded), "big")


_ANONYMOUS: Final = "headrace-stranger"
_EC: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def access_plugins(facts: ExportFacts, endpoint: Endpoint) -> Iterator[Body]:
    """Yield the plugins that authenticate callers of an endpoint; none if it is public."""
    methods = _methods(facts, endpoint)
    several: Body = {"anonymous": _ANONYMOUS} if len(methods) > 1 else {}
    if Method.KEY in methods:
        config: Body = {"key_names": ["x-api-key"], "key_in_query": False, "hide_credentials": True}
        yield {"name": "key-auth", "config": {**config, **several}}
    if Method.JWT in methods:
        token: Body = {"key_claim_name": "iss", "claims_to_verify": ["exp"], "uri_param_names": []}
        yield {"name": "jwt", "config": {**token, **several}}


def consumers(facts: ExportFacts) -> list[Body]:
    """Return one consumer per identity provider with its key, and the refused anonymous one."""
    if not any(_methods(facts, endpoint) for endpoint in facts.endpoints):
        return []
    bodies: list[Body] = []
    if any(Method.JWT in _methods(facts, endpoint) for endpoint in facts.endpoints):
        for jwt in facts.spec.auth.jwt:
            secrets = list(_jwt_secrets(facts, jwt))
            if secrets:
                bodies.append({"username": f"headrace-jwt-{jwt.name}", "jwt_secrets": secrets})
    if any(len(_methods(facts, endpoint)) > 1 for endpoint in facts.endpoints):
        refusal: Body = {"status_code": 401, "message": "missing or invalid key or token"}
        plugin: Body = {"name": "request-termination", "config": refusal}
        bodies.append({"username": _ANONYMOUS, "plugins": [plugin]})
    return bodies


def access_losses(facts: ExportFacts) -> Iterator[Loss]:
    """Yield losses of authentication methods that Kong's plugins do not support."""
    names = {jwt.name for jwt in facts.spec.auth.jwt}
    for endpoint in facts.endpoints:
        access = endpoint.spec.access
        methods_with_issuer = [
            m for m in access or () if access != "public" and m.startswith("jwt:")
        ]
        if methods_with_issuer and {m.partition(":")[2] for m in methods_with_issuer} != names:
            yield Loss(
                f"{endpoint.location}.access",
                "accepts tokens of all configured issuers, not of some of them",
                "set `jwt`, or export the endpoints of each issuer separately (--endpoint)",
            )
    for i, jwt in enumerate(facts.spec.auth.jwt):
        count = len(_keys(facts, jwt))
        if jwt.jwks_file and count != 1:
            yield Loss(
                f"auth.jwt[{i}].jwks_file",
                f"accepts one RSA or EC key per issuer, and this file has {count}",
                "use a file with one key",
            )


def _methods(facts: ExportFacts, endpoint: Endpoint) -> set[str]:
    """Return the supported authentication methods of an endpoint; tokens only with an issuer."""
    access = endpoint.spec.access
    if access == "public":
        return set()
    named = {method.partition(":")[0] for method in access or (Method.KEY, Method.JWT)}
    issued = {Method.JWT.value} if facts.spec.auth.jwt else set()
    return named & ({Method.KEY.value} | issued)


def _keys(facts: ExportFacts, jwt: JwtSpec) -> list[Any]:
    return public_keys(facts.key_sets.get(jwt.name, json.dumps({"keys": []})))


def _jwt_secrets(facts: ExportFacts, jwt: JwtSpec) -> Iterator[Body]:
    for key in _keys(facts, jwt)[:1]:
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        algorithm = "RS256"
        if isinstance(key, EllipticCurvePublicKey):
            algorithm = _EC[key.curve.name]
        # Kong's schema requires a secret even for algorithms without one.
        yield {
            "key": jwt.issuer,
            "algorithm": algorithm,
            "rsa_public_key": pem,
            "secret": "unused",
        }


_CONNECT_MS: Final = 1000
_MAX_WEIGHT: Final = 65_535
_NO_TIMEOUT_MS: Final = 2**31 - 2
_PORTS: Final = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
_VERBS: Final = ("predict",)
# Kong prefers the route with more conditions, then the longer path: versions win.
_WINDOWS: Final = (("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400))
_EXACT: Final = 1e-9
_STRIP: Final[Body] = {
    "name": "request-transformer",
    "config": {"remove": {"headers": list(INTERNAL_HEADERS)}},
}
"""Removes headers which only a gateway may set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KongOptions:
    """Addresses of replicas by endpoint and version: HOST:PORT for HTTP, and for gRPC."""

    replicas: Mapping[tuple[str, str], Sequence[str]]
    grpc_replicas: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)


def kong(facts: ExportFacts, options: KongOptions) -> Export:
    """Export one declarative file: services, upstreams with weighted targets, routes and plugins.

    Raises:
        NotExpressibleError: Kong cannot express the spec.
        InvalidArgumentError: A version's address is missing.
    """
    addresses = addresses_of(facts, options.replicas)
    services: list[Body] = []
    upstreams: list[Body] = []
    alone = len(facts.endpoints) == 1
    for endpoint in facts.endpoints:
        addresses_by_version = {
            v.number: _targets(endpoint, v, addresses) for v in endpoint.versions
        }
        services += _http_services(facts, endpoint)
        upstreams += _upstreams(endpoint, addresses_by_version, "")
        grpc = {
            v.number: tuple(options.grpc_replicas.get((endpoint.name, v.number), ()))
            for v in endpoint.versions
        }
        if all(grpc.values()):
            # Kong cannot inspect messages: callers of several endpoints set theirs in the metadata.
            named: Body = {} if alone else {"headers": {MODEL_HEADER: [endpoint.name]}}
            grpc_route: Body = {"paths": [f"/{SERVICE}/"], **named}
            services.append(_service(facts, endpoint, "", "grpc", grpc_route))
            upstreams += _upstreams(endpoint, grpc, "grpc.")
    body: Body = {"_format_version": "3.0", "services": services, "upstreams": upstreams}
    kong_consumers = consumers(facts)
    if kong_consumers:
        body["consumers"] = kong_consumers
    return finish(
        ExportTarget.KONG,
        facts,
        [ExportDocument(name="kong", body=body)],
        losses=[
            *access_losses(facts),
            *(loss for e in facts.endpoints for loss in _losses(e)),
        ],
        notes=_notes(facts, grpc=bool(options.grpc_replicas)),
    )


def _http_services(facts: ExportFacts, endpoint: Endpoint) -> Iterator[Body]:
    """Yield a service for the split, and one per version number."""
    path = f"/v2/models/{endpoint.name}"
    v1 = f"/v1/models/{endpoint.name}"
    paths = [f"~{_quoted(prefix)}(/.*)?$" for prefix in (path, v1)]
    paths += [f"~{_quoted(v1)}:{verb}$" for verb in _VERBS]
    yield _service(facts, endpoint, "", "http", {"paths": paths, "regex_priority": 0})
    for version in endpoint.versions:
        own = {
            "paths": [f"~{_quoted(path)}/versions/{version.number}(/.*)?$"],
            "regex_priority": 10,
        }
        yield _service(facts, endpoint, version.number, "http", own)


def _service(
    facts: ExportFacts, endpoint: Endpoint, number: str, protocol: str, route: Body
) -> Body:
    name = _name(endpoint, number)
    is_grpc = protocol == "grpc"
    split = endpoint.split if not number else (endpoint.version(number),)
    timeout_s = endpoint.spec.timeout_s
    wait_ms = _NO_TIMEOUT_MS if timeout_s is None else round((timeout_s + GRACE_S) * 1000)
    kind = f"{name}.grpc" if is_grpc else name
    size = endpoint.spec.limits.max_body_bytes or facts.body_bytes
    config: Body = {
        "allowed_payload_size": size,
        "size_unit": "bytes",
        "require_content_length": False,
    }
    return {
        "name": kind,
        "protocol": protocol if is_grpc else _scheme(split),
        "host": f"grpc.{name}.headrace" if is_grpc else f"{name}.headrace",
        "port": 80,
        "connect_timeout": _CONNECT_MS,
        "read_timeout": wait_ms,
        "write_timeout": wait_ms,
        "retries": 3,
        "routes": [
            {
                "name": kind,
                "protocols": ["grpc", "grpcs"] if is_grpc else ["http", "https"],
                **({} if is_grpc else {"strip_path": False}),
                **route,
            }
        ],
        "plugins": [
            *access_plugins(facts, endpoint),
            *_limit_plugins(endpoint),
            {"name": "request-size-limiting", "config": config},
            _STRIP,
        ],
    }


def _upstreams(
    endpoint: Endpoint, addresses_by_version: Mapping[str, Sequence[str]], prefix: str
) -> Iterator[Body]:
    shares = [
        {"target": address, "weight": weight}
        for address, weight in _weighted(endpoint, addresses_by_version)
    ]
    yield {
        "name": f"{prefix}{_name(endpoint)}.headrace",
        **_balancing(endpoint),
        "targets": shares,
        "tags": ["headrace"],
    }
    if prefix:
        return
    for version in endpoint.versions:
        targets = [
            {"target": address, "weight": 100} for address in addresses_by_version[version.number]
        ]
        yield {
            "name": f"{_name(endpoint, version.number)}.headrace",
            "algorithm": "least-connections",
            "targets": targets,
            "tags": ["headrace"],
        }


def _weighted(
    endpoint: Endpoint, addresses_by_version: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, int]]:
    """Yield each replica's weight that gives versions their shares for any replica count.

    Kong adds up the weights of targets: one of three replicas has a third of its version's weight.
    Exact while the weights are within Kong's limit, else rounded to thousandths.
    """
    common = lcm(*(len(addresses_by_version[version.number]) for version in endpoint.split))
    exact = {
        v.number: v.weight * common // len(addresses_by_version[v.number]) for v in endpoint.split
    }
    largest = max(exact.values())
    for version in endpoint.split:
        weight = exact[version.number]
        if largest > _MAX_WEIGHT:
            weight = max(round(weight * _MAX_WEIGHT / largest), 1)
        for address in addresses_by_version[version.number]:
            yield address, weight


def _balancing(endpoint: Endpoint) -> Body:
    sticky = endpoint.spec.sticky
    if sticky is None or sticky.claim:
        return {"algorithm": "round-robin"}
    if sticky.cookie:
        balancing: Body = {
            "hash_on": "cookie",
            "hash_on_cookie": sticky.cookie,
            "hash_on_cookie_path": "/",
        }
    else:
        balancing = {"hash_on": "header", "hash_on_header": sticky.header, "hash_fallback": "none"}
    return {"algorithm": "consistent-hashing", **balancing}


def _limit_plugins(endpoint: Endpoint) -> Iterator[Body]:
    """Yield the limit of all callers, else of each; Kong allows one such plugin per service."""
    limits = endpoint.spec.limits
    total, per_caller = _windows(limits.total), _windows(limits.per_caller)
    windows = total or per_caller
    if windows:
        by = "service" if total else "consumer" if _needs_authentication(endpoint) else "ip"
        config: Body = {**windows, "policy": "local", "limit_by": by, "fault_tolerant": True}
        yield {"name": "rate-limiting", "config": config}


def _windows(limits: LimitSpec) -> Body:
    """Return a limit's windows: Kong counts whole requests, in the smallest fitting window."""
    windows: Body = {}
    if limits.requests_per_s is not None:
        windows |= _window(limits.requests_per_s) or {}
    if limits.requests_per_day is not None:
        windows["day"] = min(limits.requests_per_day, windows.get("day", limits.requests_per_day))
    return windows


def _window(rate: float) -> Body | None:
    for unit, seconds in _WINDOWS:
        count = rate * seconds
        if count >= 1 - _EXACT and abs(count - round(count)) < _EXACT * max(count, 1):
            return {unit: round(count)}
    return None


def _losses(endpoint: Endpoint) -> Iterator[Loss]:
    limits = endpoint.spec.limits
    for source, limit in ((".", limits.total), (".per_caller.", limits.per_caller)):
        rate = limit.requests_per_s
        if rate is not None and _window(rate) is None:
            yield Loss(
                f"{endpoint.location}.limits{source}requests_per_s",
                f"counts whole requests per second, minute, hour or day, and {rate:g} is not "
                "whole in any",
                "use a number that is whole in one of them",
            )
    if _windows(limits.total) and _windows(limits.per_caller):
        yield Loss(
            f"{endpoint.location}.limits.per_caller",
            "allows one limit of a kind per service, and all callers together have one already",
            "keep one of the two",
        )
    for version in endpoint.versions:
        upstream, location = version.upstream, f"{version.location}.upstream"
        if upstream is None:
            continue
        parts = urlsplit(upstream.url)
        if parts.scheme not in {"http", "https"} or parts.path.strip("/"):
            yield Loss(
                f"{location}.url",
                "supports http://HOST:PORT and https://HOST:PORT only, as targets have no path",
                "use a proxy that adds the path, or export for Envoy",
            )
        if upstream.model:
            yield Loss(
                f"{location}.model",
                "forwards requests with the name in the request",
                "give the endpoint the model's name there, or export for Envoy",
            )
        if upstream.protocol not in {"v2", "v1", "http"}:
            reason = "does not support the protocol of this server"
            yield Loss(f"{location}.protocol", reason, "export for Envoy")
    schemes = {_scheme((version,)) for version in endpoint.split}
    if len(schemes) > 1:
        yield Loss(
            f"{endpoint.location}.versions",
            f"uses one protocol for a whole split, and these are {' and '.join(sorted(schemes))}",
            "use the same protocol for both",
        )


def _notes(facts: ExportFacts, *, grpc: bool) -> Iterator[ExportNote]:
    if any(_needs_authentication(e) for e in facts.endpoints):
        yield ExportNote("API keys are not in a spec; add consumers with `keyauth_credentials`")
    if grpc and len(facts.endpoints) > 1:
        yield ExportNote(
            f"gRPC: Kong cannot inspect messages: callers set the endpoint in {MODEL_HEADER}"
        )


def _needs_authentication(endpoint: Endpoint) -> bool:
    return endpoint.spec.access != "public"


def _targets(
    endpoint: Endpoint, version: Version, addresses: Mapping[tuple[str, str], Sequence[str]]
) -> tuple[str, ...]:
    if version.upstream is None:
        return tuple(addresses[endpoint.name, version.number])
    parts = urlsplit(version.upstream.url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return (f"{host}:{parts.port or _PORTS[parts.scheme]}",)


def _scheme(split: Sequence[Version]) -> str:
    upstream = split[0].upstream
    return "https" if upstream is not None and upstream.url.startswith("https:") else "http"


def _name(endpoint: Endpoint, number: str = "") -> str:
    return f"{endpoint.name}.{number}" if number else endpoint.name


def _quoted(path: str) -> str:
    """Return `path` as a regular expression; only dots in names need escaping."""
    return path.replace(".", "\\.")
