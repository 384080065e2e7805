"""A traffic split as routes of the Gateway API, and the Services that they lead to.

https://gateway-api.sigs.k8s.io/reference/spec/
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from headrace.control.kubernetes.pods import GRPC_PORT, HTTP_PORT
from headrace.core.headers import INTERNAL_HEADERS
from headrace.deploy.export import (
    NO_AUTHENTICATION,
    Body,
    ClusterTarget,
    Export,
    ExportDocument,
    finish,
    implied_access,
    labels,
    manifest,
    object_name,
)
from headrace.deploy.facts import Endpoint, ExportFacts, Version
from headrace.deploy.features import ExportNote, ExportTarget, Loss

MODEL_HEADER: Final = "x-model"


def has_grpc_route(endpoint: Endpoint, target: ClusterTarget) -> bool:
    """Whether every version speaks gRPC: a replica of the driver's does not."""
    return all(
        not target.has_drivers_service(endpoint, version)
        if version.upstream is None
        else version.upstream.protocol == "grpc"
        for version in endpoint.versions
    )


def grpc_notes(facts: ExportFacts, target: ClusterTarget, port: int | None) -> Iterator[ExportNote]:
    """What gRPC needs, and where it has no route. `port`: None where nobody asked for routes."""
    if port is None:
        return
    if any(has_grpc_route(endpoint, target) for endpoint in facts.endpoints):
        if len(facts.endpoints) > 1:
            yield ExportNote(
                "gRPC: routes cannot read a message, so callers name the endpoint in the metadata "
                f"{MODEL_HEADER}"
            )
        yield ExportNote(
            f"gRPC: the Services need port {port}, with replicas that serve gRPC there"
        )
    for endpoint in facts.endpoints:
        if any(target.has_drivers_service(endpoint, version) for version in endpoint.versions):
            yield ExportNote(
                "no GRPCRoute, as the driver's Services have HTTP only: leave gRPC to Headrace's "
                "gateway, or name others by --service",
                endpoint.location,
            )


def service_notes(facts: ExportFacts, target: ClusterTarget) -> Iterator[ExportNote]:
    """Which Services have names that nobody vouches for."""
    guessed = [
        f"{target.service(endpoint, version)[0]} ({version.location})"
        for endpoint in facts.endpoints
        for version in endpoint.versions
        if version.upstream is None
        and not version.revision
        and (endpoint.name, version.number) not in (target.services or {})
    ]
    if guessed:
        yield ExportNote(
            f"Services are taken to be called {', '.join(guessed)}: what the driver calls them is "
            "known of a running system (--from-system) and of models in the registry; --service "
            "names others"
        )


API: Final = "gateway.networking.k8s.io/v1"
SERVICE: Final = "inference.GRPCInferenceService"
VERSION_HEADER: Final = "x-model-version"
GRACE_S: Final = 0.5
"""A replica answers at the deadline itself and says why: a gateway waits a little longer."""
_MOST_RULES: Final = 16
_MOST_BACKENDS: Final = 16
_VERBS: Final = ("predict",)
_SERVER_PATHS: Final = ("/v2", "/v2/health/live", "/v2/health/ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayApiOptions:
    """`gateway`: NAME or NAMESPACE/NAME of the Gateway, with `section` one listener of it.

    `grpc`: whether replicas serve gRPC too, on `grpc_port` of their Services.
    """

    gateway: str = "headrace"
    section: str = ""
    hostnames: tuple[str, ...] = ()
    grpc: bool = True
    grpc_port: int = GRPC_PORT


def gateway_api(facts: ExportFacts, target: ClusterTarget, options: GatewayApiOptions) -> Export:
    """HTTPRoutes and GRPCRoutes that split requests between the Services of versions.

    Raises:
        NotExpressibleError: The spec says what routes cannot.
    """
    routed = tuple(_routed(facts, target))
    documents = [
        document
        for endpoint in routed
        for document in _documents(endpoint, target, options, alone=len(routed) == 1)
    ]
    if routed:
        # What is about no endpoint goes to some replica, as it does behind our own
        # gateway.
        endpoint = routed[0]
        backends = [
            {**_backend(endpoint, v, target, HTTP_PORT), "weight": v.weight}
            for v in _weighted(endpoint)
        ]
        rule: Body = {
            "matches": [_exact(path) for path in _SERVER_PATHS],
            "filters": [remove_internal_headers()],
            "backendRefs": backends,
        }
        metadata = target.metadata(
            object_name(target.instance, "server"), labels(target.instance, "gateway")
        )
        documents.append(route("HTTPRoute", metadata, options, [rule]))
    losses = [*implied_access(facts, *NO_AUTHENTICATION), *_losses(facts, target)]
    grpc_port = options.grpc_port if options.grpc else None
    notes = [*grpc_notes(facts, target, grpc_port), *service_notes(facts, target)]
    return finish(ExportTarget.GATEWAY_API, facts, documents, losses=losses, notes=notes)


def _routed(facts: ExportFacts, target: ClusterTarget) -> Iterator[Endpoint]:
    """The endpoints as routes have them: without servers that no Service is named for."""
    for endpoint in facts.endpoints:
        versions = tuple(v for v in endpoint.versions if _has_service(endpoint, v, target))
        routed = replace(endpoint, versions=versions)
        if routed.split:
            yield routed


def _has_service(endpoint: Endpoint, version: Version, target: ClusterTarget) -> bool:
    return version.upstream is None or (endpoint.name, version.number) in (target.services or {})


def http_rules(endpoint: Endpoint, split: Sequence[Body], own: dict[str, Body]) -> list[Body]:
    """The rules of an endpoint's HTTPRoute.

    Args:
        split: The backends of requests that name no version.
        own: The backend of each version that its number reaches.
    """
    path = f"/v2/models/{endpoint.name}"
    timeout_s = endpoint.spec.timeout_s
    limit_s = 0.0 if timeout_s is None else timeout_s + GRACE_S
    timeouts = {"timeouts": {"request": duration(limit_s)}}
    strip: Body = {"filters": [remove_internal_headers()]}
    rules: list[Body] = [
        {
            "matches": [_prefix(f"{path}/versions/{number}")],
            **strip,
            "backendRefs": [backend],
            **timeouts,
        }
        for number, backend in own.items()
    ]
    v1 = f"/v1/models/{endpoint.name}"
    matches = [_prefix(path), _prefix(v1), *(_exact(f"{v1}:{verb}") for verb in _VERBS)]
    rules.append({"matches": matches, **strip, "backendRefs": list(split), **timeouts})
    return rules


def remove_internal_headers() -> Body:
    """The filter that takes headers away which only a gateway may set."""
    return {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"remove": list(INTERNAL_HEADERS)},
    }


def duration(value_s: float) -> str:
    """A time as the Gateway API writes it (GEP-2257), to the millisecond; 0 is none."""
    rest_ms = round(value_s * 1000)
    parts = []
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest_ms = divmod(rest_ms, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _documents(
    endpoint: Endpoint, target: ClusterTarget, options: GatewayApiOptions, *, alone: bool
) -> Iterator[ExportDocument]:
    http = {v.number: _backend(endpoint, v, target, HTTP_PORT) for v in endpoint.versions}
    split = [{**http[v.number], "weight": v.weight} for v in _weighted(endpoint)]
    rules = http_rules(endpoint, split, http)
    copies = _mirror(endpoint, http)
    if copies:
        rules[-1] = {**rules[-1], "filters": [remove_internal_headers(), *copies]}
    yield from _routes("HTTPRoute", endpoint, target, options, rules)
    if not options.grpc or not has_grpc_route(endpoint, target):
        return
    grpc = {
        v.number: _backend(endpoint, v, target, options.grpc_port, is_grpc=True)
        for v in endpoint.versions
    }
    method = {"type": "Exact", "service": SERVICE}
    named = [] if alone else [_header(MODEL_HEADER, endpoint.name)]
    grpc_rules: list[Body] = [
        {
            "matches": [{"method": method, "headers": [*named, _header(VERSION_HEADER, number)]}],
            "filters": [remove_internal_headers()],
            "backendRefs": [backend],
        }
        for number, backend in grpc.items()
    ]
    match: Body = {"method": method, **({"headers": named} if named else {})}
    split = [{**grpc[v.number], "weight": v.weight} for v in _weighted(endpoint)]
    copies = _mirror(endpoint, grpc)
    grpc_rules.append(
        {
            "matches": [match],
            "filters": [remove_internal_headers(), *copies],
            "backendRefs": split,
        }
    )
    yield from _routes("GRPCRoute", endpoint, target, options, grpc_rules)


def _routes(
    kind: str,
    endpoint: Endpoint,
    target: ClusterTarget,
    options: GatewayApiOptions,
    rules: list[Body],
) -> Iterator[ExportDocument]:
    """One route, or several where it would have more rules than one may have."""
    named = labels(target.instance, "gateway", endpoint=endpoint.name)
    for i in range(0, len(rules), _MOST_RULES):
        more = f"{i // _MOST_RULES + 1}" if i else ""
        name = object_name(target.instance, endpoint.name, more)
        part = rules[i : i + _MOST_RULES]
        yield route(kind, target.metadata(name, named), options, part)


def route(
    kind: str, metadata: Body, options: GatewayApiOptions, rules: list[Body]
) -> ExportDocument:
    """A route of the Gateway that the options name."""
    namespace, _, name = options.gateway.rpartition("/")
    parent: Body = {"name": name}
    if namespace:
        parent["namespace"] = namespace
    if options.section:
        parent["sectionName"] = options.section
    hosts: Body = {"hostnames": list(options.hostnames)} if options.hostnames else {}
    spec: Body = {"parentRefs": [parent], **hosts, "rules": rules}
    return manifest(API, kind, metadata, spec=spec)


def _backend(
    endpoint: Endpoint, version: Version, target: ClusterTarget, port: int, *, is_grpc: bool = False
) -> Body:
    name, own_port = target.service(endpoint, version)
    return {"name": name, "port": port if is_grpc else own_port or port}


def _weighted(endpoint: Endpoint) -> list[Version]:
    """The versions of the split; those with the largest shares where there are too many."""
    largest = sorted(endpoint.split, key=lambda version: -version.weight)[:_MOST_BACKENDS]
    return [version for version in endpoint.split if version in largest]


def _mirror(endpoint: Endpoint, backends: dict[str, Body]) -> list[Body]:
    """Copies of requests to the shadow, whose answers are dropped."""
    if endpoint.mirror not in backends or not endpoint.mirror_percent:
        return []
    mirror: Body = {"backendRef": backends[endpoint.mirror], "percent": endpoint.mirror_percent}
    return [{"type": "RequestMirror", "requestMirror": mirror}]


def _losses(facts: ExportFacts, target: ClusterTarget) -> Iterator[Loss]:
    """Splits over more versions than a rule takes; servers that no Service is named for."""
    for endpoint in facts.endpoints:
        if len(endpoint.split) > _MOST_BACKENDS:
            yield Loss(
                f"{endpoint.location}.versions",
                f"splits between {_MOST_BACKENDS} versions, and here are {len(endpoint.split)}",
                "end those with the smallest shares",
            )
        for version in endpoint.versions:
            key = (endpoint.name, version.number)
            if not _has_service(endpoint, version, target):
                yield Loss(
                    f"{version.location}.upstream",
                    "a route leads to Services only",
                    f"make one for it: --service {key[0]}:{key[1]}=NAME:PORT",
                )


def _prefix(path: str) -> Body:
    return {"path": {"type": "PathPrefix", "value": path}}


def _exact(path: str) -> Body:
    return {"path": {"type": "Exact", "value": path}}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"type": "Exact", "name": name, "value": value}
