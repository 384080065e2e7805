"""Export of a traffic split as Gateway API routes, and the Services or InferencePools behind them.

https://gateway-api.sigs.k8s.io/reference/spec/
https://gateway-api-inference-extension.sigs.k8s.io/reference/spec/
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from headrace.control.kubernetes.names import COMPONENT, ENDPOINT, INSTANCE, VERSION, label_value
from headrace.control.kubernetes.pods import GRPC_PORT, HTTP_PORT
from headrace.core import InvalidArgumentError
from headrace.core.headers import INTERNAL_HEADERS
from headrace.core.images import OPENAI_RUNTIMES
from headrace.core.settings import OPENAI_PORT
from headrace.core.spec.upstream import UpstreamProtocol
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
    """Whether every version serves gRPC: language models and the driver's replicas do not."""
    return not is_language_model(endpoint) and all(
        not target.has_drivers_service(endpoint, version)
        if version.upstream is None
        else version.upstream.protocol == "grpc"
        for version in endpoint.versions
    )


def grpc_notes(facts: ExportFacts, target: ClusterTarget) -> Iterator[ExportNote]:
    """Yield gRPC's requirements, and endpoints without gRPC route."""
    if any(has_grpc_route(endpoint, target) for endpoint in facts.endpoints):
        if len(facts.endpoints) > 1:
            yield ExportNote(
                "gRPC: routes cannot inspect messages, so callers set the endpoint in the metadata "
                f"{MODEL_HEADER}"
            )
        yield ExportNote(
            f"gRPC: the Services need port {GRPC_PORT}, with replicas that serve gRPC there"
        )
    for endpoint in facts.endpoints:
        if not is_language_model(endpoint) and any(
            target.has_drivers_service(endpoint, version) for version in endpoint.versions
        ):
            yield ExportNote(
                "no GRPCRoute, as the driver's Services are HTTP only: use Headrace's gateway "
                "for gRPC, "
                "or set other Services with --service",
                endpoint.location,
            )


def is_language_model(endpoint: Endpoint) -> bool:
    """Whether some version serves OpenAI's API alone, without tensors."""
    return any(
        (endpoint.spec.runtime or (version.artifact.runtime if version.artifact else ""))
        in OPENAI_RUNTIMES
        if version.upstream is None
        else version.upstream.protocol is UpstreamProtocol.OPENAI
        for version in endpoint.versions
    )


def service_notes(facts: ExportFacts, target: ClusterTarget) -> Iterator[ExportNote]:
    """Yield Services whose names are assumed."""
    guessed = [
        f"{target.service(endpoint, version)[0]} ({version.location})"
        for endpoint in facts.endpoints
        for version in endpoint.versions
        if version.upstream is None
        and not version.revision
        and (endpoint.name, version.number) not in target.services
    ]
    if guessed:
        yield ExportNote(
            f"Services are assumed to be named {', '.join(guessed)}: the driver's names are "
            "known for a running system (--from-system) and for models in the registry; --service "
            "sets other names"
        )


API: Final = "gateway.networking.k8s.io/v1"
SERVICE: Final = "inference.GRPCInferenceService"
VERSION_HEADER: Final = "x-model-version"
GRACE_S: Final = 0.5
"""The replica responds at the deadline with a reason, so the gateway waits a little longer."""
_MAX_NAME: Final = 63
_MAX_RULES: Final = 16
_MAX_BACKENDS: Final = 16
_VERBS: Final = ("predict",)
_OPENAI_PATHS: Final = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
    *("/v1/rerank", "/v2/rerank"),
)
_POOL_GROUP: Final = "inference.networking.k8s.io"
_NAMED_MODEL_HEADER: Final = "X-Gateway-Model-Name"
"""Header in which the Inference Extension's body-based router writes the model of a body."""
_PICKER: Final = "-epp"
"""Suffix of the Service of a pool's endpoint picker, as in the extension's chart."""
_PICKER_PORT: Final = 9002
_SERVER_PATHS: Final = ("/v2", "/v2/health/live", "/v2/health/ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayApiOptions:
    """Options of the target."""

    gateway: str = "headrace"
    """NAME or NAMESPACE/NAME of the Gateway."""

    section: str = ""
    """One listener of the Gateway."""

    hostnames: tuple[str, ...] = ()

    grpc: bool = True
    """Whether replicas serve gRPC, too."""

    inference_pool: bool = False
    """Whether routes of language models lead to InferencePools, whose endpoint pickers choose the
    pod, and not to Services."""


def gateway_api(facts: ExportFacts, target: ClusterTarget, options: GatewayApiOptions) -> Export:
    """Export HTTPRoutes and GRPCRoutes that split requests between the Services of versions.

    Raises:
        NotExpressibleError: Routes cannot express the spec.
        InvalidArgumentError: InferencePools are requested, and no endpoint is a language model.
    """
    routed = tuple(_routed(facts, target))
    language_models = [endpoint for endpoint in routed if is_language_model(endpoint)]
    if options.inference_pool and not language_models:
        raise InvalidArgumentError(
            "--inference-pool is for language models, and no exported endpoint is one: leave it out"
        )
    documents = [
        document
        for endpoint in routed
        for document in (
            _language_model(endpoint, target, options, alone=len(language_models) == 1)
            if endpoint in language_models
            else _documents(endpoint, target, options, alone=len(routed) == 1)
        )
    ]
    if routed:
        # Requests that concern no endpoint go to some replica, as with Headrace's gateway.
        endpoint = routed[0]
        backends = {v.number: _backend(endpoint, v, target, HTTP_PORT) for v in endpoint.versions}
        rule = _rule([_exact(path) for path in _SERVER_PATHS], _split(endpoint, backends))
        metadata = target.metadata(
            object_name(target.instance, "server"), labels(target.instance, "gateway")
        )
        documents.append(route("HTTPRoute", metadata, options, [rule]))
    losses = [*implied_access(facts, *NO_AUTHENTICATION), *_losses(facts, target)]
    notes = [
        *(grpc_notes(facts, target) if options.grpc else ()),
        *service_notes(facts, target),
        *(_language_model_notes(language_models, options) if language_models else ()),
    ]
    return finish(ExportTarget.GATEWAY_API, facts, documents, losses=losses, notes=notes)


def _routed(facts: ExportFacts, target: ClusterTarget) -> Iterator[Endpoint]:
    """Yield the endpoints with routes: without upstreams that have no Service."""
    for endpoint in facts.endpoints:
        versions = tuple(v for v in endpoint.versions if _has_service(endpoint, v, target))
        routed = replace(endpoint, versions=versions)
        if routed.split:
            yield routed


def _has_service(endpoint: Endpoint, version: Version, target: ClusterTarget) -> bool:
    return version.upstream is None or (endpoint.name, version.number) in target.services


def http_rules(endpoint: Endpoint, split: Sequence[Body], own: dict[str, Body]) -> list[Body]:
    """Return the rules of an endpoint's HTTPRoute.

    Args:
        split: The backends of requests without a version.
        own: The backend of each version number.
    """
    path = f"/v2/models/{endpoint.name}"
    timeout_s = endpoint.spec.timeout_s
    limit_s = 0.0 if timeout_s is None else timeout_s + GRACE_S
    rules = [
        _rule([_prefix(f"{path}/versions/{number}")], [backend], limit_s=limit_s)
        for number, backend in own.items()
    ]
    v1 = f"/v1/models/{endpoint.name}"
    matches = [_prefix(path), _prefix(v1), *(_exact(f"{v1}:{verb}") for verb in _VERBS)]
    return [*rules, _rule(matches, split, limit_s=limit_s)]


def _rule(matches: list[Body], backends: Sequence[Body], *, limit_s: float | None = None) -> Body:
    """Return a rule of a route, which removes headers that only a gateway may set."""
    removed: Body = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"remove": list(INTERNAL_HEADERS)},
    }
    rule: Body = {"matches": matches, "filters": [removed], "backendRefs": list(backends)}
    return rule if limit_s is None else {**rule, "timeouts": {"request": duration(limit_s)}}


def _split(endpoint: Endpoint, backends: dict[str, Body]) -> list[Body]:
    """Return the weighted backends of requests without a version."""
    return [{**backends[v.number], "weight": v.weight} for v in _weighted(endpoint)]


def duration(value_s: float) -> str:
    """Return a duration of the Gateway API (GEP-2257), in milliseconds; 0 means none."""
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
    rules = http_rules(endpoint, _split(endpoint, http), http)
    rules[-1]["filters"] += _mirror(endpoint, http)
    yield from _routes("HTTPRoute", endpoint, target, options, rules)
    if not options.grpc or not has_grpc_route(endpoint, target):
        return
    grpc = {v.number: _backend(endpoint, v, target, GRPC_PORT) for v in endpoint.versions}
    method = {"type": "Exact", "service": SERVICE}
    named = [] if alone else [_header(MODEL_HEADER, endpoint.name)]
    match: Body = {"method": method, **({"headers": named} if named else {})}
    rules = [
        _rule([{**match, "headers": [*named, _header(VERSION_HEADER, number)]}], [backend])
        for number, backend in grpc.items()
    ]
    rules.append(_rule([match], _split(endpoint, grpc)))
    rules[-1]["filters"] += _mirror(endpoint, grpc)
    yield from _routes("GRPCRoute", endpoint, target, options, rules)


def _language_model(
    endpoint: Endpoint, target: ClusterTarget, options: GatewayApiOptions, *, alone: bool
) -> Iterator[ExportDocument]:
    """Yield the route of an endpoint of OpenAI's API, and the InferencePools of its versions."""
    backends: dict[str, Body] = {}
    for version in endpoint.versions:
        if options.inference_pool and version.upstream is None:
            pool = _inference_pool(endpoint, version, target)
            yield pool
            name = pool.body["metadata"]["name"]
            backends[version.number] = {"group": _POOL_GROUP, "kind": "InferencePool", "name": name}
        else:
            port = OPENAI_PORT if version.upstream is None else HTTP_PORT
            backends[version.number] = _backend(endpoint, version, target, port)
    targets: list[tuple[str, list[Body]]] = [
        *((f"{endpoint.name}:{number}", [backend]) for number, backend in backends.items()),
        ("" if alone else endpoint.name, _split(endpoint, backends)),
    ]
    paths = [*map(_exact, _OPENAI_PATHS), _prefix("/v1/audio")]
    rules: list[Body] = []
    for model, references in targets:
        named: Body = {"headers": [_header(_NAMED_MODEL_HEADER, model)]} if model else {}
        rules.append(_rule([{**path, **named} for path in paths], references, limit_s=0.0))
    rules[-1]["filters"] += _mirror(endpoint, backends)
    yield from _routes("HTTPRoute", endpoint, target, options, rules)


def _inference_pool(endpoint: Endpoint, version: Version, target: ClusterTarget) -> ExportDocument:
    """Return the pool of the driver's pods of a version."""
    longest = _MAX_NAME - len(_PICKER)
    name = object_name(target.instance, endpoint.name, version.number, longest=longest)
    selector = {
        INSTANCE: target.instance,
        COMPONENT: "replica",
        ENDPOINT: label_value(endpoint.name),
        VERSION: label_value(version.number),
    }
    picker: Body = {
        "name": f"{name}{_PICKER}",
        "port": {"number": _PICKER_PORT},
        "failureMode": "FailOpen",
    }
    spec: Body = {
        "selector": {"matchLabels": selector},
        "targetPorts": [{"number": OPENAI_PORT}],
        "endpointPickerRef": picker,
    }
    named = labels(target.instance, "gateway", endpoint=endpoint.name, version=version.number)
    return manifest(f"{_POOL_GROUP}/v1", "InferencePool", target.metadata(name, named), spec=spec)


def _language_model_notes(
    endpoints: Sequence[Endpoint], options: GatewayApiOptions
) -> Iterator[ExportNote]:
    """Yield what routes of language models need and lack."""
    unread = "NAME:VERSION" if len(endpoints) == 1 else "the endpoint"
    yield ExportNote(
        f"routes cannot read {unread} in `model` of a body: the body-based router of the Inference "
        f"Extension, or a caller, sets {_NAMED_MODEL_HEADER}"
    )
    if options.inference_pool:
        yield ExportNote(
            f"each InferencePool NAME needs its endpoint picker: a Service NAME{_PICKER} with port "
            f"{_PICKER_PORT}"
        )
    for endpoint in endpoints:
        if endpoint.spec.timeout_s is not None:
            yield ExportNote(
                "a route's timeout bounds the whole answer and not the first token: none is set",
                f"{endpoint.location}.timeout_s",
            )


def _routes(
    kind: str,
    endpoint: Endpoint,
    target: ClusterTarget,
    options: GatewayApiOptions,
    rules: list[Body],
) -> Iterator[ExportDocument]:
    """Yield one route, or several if it would exceed the maximum number of rules."""
    named = labels(target.instance, "gateway", endpoint=endpoint.name)
    for i in range(0, len(rules), _MAX_RULES):
        more = f"{i // _MAX_RULES + 1}" if i else ""
        name = object_name(target.instance, endpoint.name, more)
        part = rules[i : i + _MAX_RULES]
        yield route(kind, target.metadata(name, named), options, part)


def route(
    kind: str, metadata: Body, options: GatewayApiOptions, rules: list[Body]
) -> ExportDocument:
    """Return a route of the Gateway in the options."""
    namespace, _, name = options.gateway.rpartition("/")
    parent: Body = {"name": name}
    if namespace:
        parent["namespace"] = namespace
    if options.section:
        parent["sectionName"] = options.section
    hosts: Body = {"hostnames": list(options.hostnames)} if options.hostnames else {}
    spec: Body = {"parentRefs": [parent], **hosts, "rules": rules}
    return manifest(API, kind, metadata, spec=spec)


def _backend(endpoint: Endpoint, version: Version, target: ClusterTarget, port: int) -> Body:
    name, own_port = target.service(endpoint, version)
    return {"name": name, "port": port if port == GRPC_PORT else own_port or port}


def _weighted(endpoint: Endpoint) -> list[Version]:
    """Return the versions of the split; those with the largest shares if there are too many."""
    largest = sorted(endpoint.split, key=lambda version: -version.weight)[:_MAX_BACKENDS]
    return [version for version in endpoint.split if version in largest]


def _mirror(endpoint: Endpoint, backends: dict[str, Body]) -> list[Body]:
    """Return the filter that mirrors requests to the shadow, whose responses are dropped."""
    if endpoint.mirror not in backends or not endpoint.mirror_percent:
        return []
    mirror: Body = {"backendRef": backends[endpoint.mirror], "percent": endpoint.mirror_percent}
    return [{"type": "RequestMirror", "requestMirror": mirror}]


def _losses(facts: ExportFacts, target: ClusterTarget) -> Iterator[Loss]:
    """Yield losses of splits with too many versions, and of upstreams without a Service."""
    for endpoint in facts.endpoints:
        if len(endpoint.split) > _MAX_BACKENDS:
            yield Loss(
                f"{endpoint.location}.versions",
                f"splits between at most {_MAX_BACKENDS} versions, and this split has "
                f"{len(endpoint.split)}",
                "remove those with the smallest shares",
            )
        for version in endpoint.versions:
            if not _has_service(endpoint, version, target):
                yield Loss(
                    f"{version.location}.upstream",
                    "a route can only refer to Services",
                    f"create one for it: --service {endpoint.name}:{version.number}=NAME:PORT",
                )


def _prefix(path: str) -> Body:
    return {"path": {"type": "PathPrefix", "value": path}}


def _exact(path: str) -> Body:
    return {"path": {"type": "Exact", "value": path}}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"type": "Exact", "name": name, "value": value}
