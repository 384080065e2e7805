"""Routes from requests to revisions: by path for HTTP, by the body's model name for gRPC.

Routes are tried in order. gRPC calls are routed twice: first by method, then, once the name of
the model was read from the message and set as a header, by that header.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace import __version__
from headrace.core import ModelNotReadyError
from headrace.core.headers import NOT_STARTED_HEADER
from headrace.gateway.access_log import log_metadata
from headrace.gateway.clusters import (
    CONTROL,
    REPLICAS,
    all_replicas,
    cluster_name,
    fallback_cluster,
    shadow_route,
)
from headrace.gateway.filters import (
    BRIDGING,
    CHECKING_NAMES,
    HEALTH_CHECK,
    INFLATING,
    MODEL_HEADER,
    MODEL_RPCS,
    OPENAI_MEASURING,
    REFUSING,
    SELECTING,
    SERVICE,
    UNIT_IDLE,
    AuthFilters,
    allowing_origins,
    reading_openai,
    without_credentials,
)
from headrace.gateway.limits import RateLimitPlan
from headrace.gateway.resources import Json, Resource, any_of, seconds, set_header
from headrace.gateway.scripts_openai import PREFIX_STATE
from headrace.gateway.settings import EndpointRoute, EnvoySettings, RevisionTarget
from headrace.gateway.splits import (
    CallProtocol,
    arm_action,
    live_split,
    split_variants,
    supports_protocol,
    with_filters,
)

if TYPE_CHECKING:
    from headrace.protocol.pages import ListTemplate

ROUTE_CONFIG: Final = "headrace"
HELD_PREFIX: Final = "/held/"
"""Prefix, followed by the endpoint's name, of the path of a request that the control plane
holds."""
REFLECTION_PREFIX: Final = "/grpc.reflection."
"""Prefix of the paths of gRPC server reflection, which the control plane answers."""

_SERVER_TIMEOUT_S: Final = 30.0
_UPLOAD_TIMEOUT_S: Final = 600.0
# A replica responds at the deadline with a reason; Envoy aborts requests without a response by
# then.
_TIMEOUT_GRACE_S: Final = 0.5
_IDLE_WITHOUT_TIMEOUT_S: Final = 3600.0
OPENAI_PATHS: Final = (
    "/v1/(chat/completions|completions|embeddings|rerank|responses|audio/[a-z]+)|/v2/rerank"
)
"""Regular expression of the paths of OpenAI's API, whose bodies name a model."""
BULK_PATHS: Final = "/v1/(files|batches)(/[^?]*)?"
"""Regular expression of the paths of files and batches."""
_OPENAI_PATH: Final[Resource] = {"safe_regex": {"regex": OPENAI_PATHS}}
_GRPC_CALL: Final[Resource] = {"prefix": "/", "grpc": {}}
_INVOCATIONS: Final = "/invocations"
"""MLflow's and SageMaker's path of predictions; `/ping` is their readiness."""
_SEVERAL: Final = "name the endpoint: POST /endpoints/NAME/invocations"
_PATHS_OF_ANY_REPLICA: Final = (
    "/v2/systemsharedmemory",
    "/v2/cudasharedmemory",
    "/v2/trace",
    "/v2/logging",
)
_HELD_STATUS: Final = 307
_PAUSED_RETRY_S: Final = "30"
_TOO_MANY_REQUESTS: Final = 429
_HOLD_GRACE_S: Final = 2.0  # the control plane itself responds first that no replica is ready
# A replica may exit again just before its first request, which then waits once more.
_MAX_REDIRECTS: Final = 5
_DIRECT_REPLY_BYTES: Final = 4096  # Envoy's own default
_READS: Final[Resource] = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
_NO_GRPC: Final[Resource] = {
    "name": "content-type",
    "string_match": {"prefix": "application/grpc"},
    "invert_match": True,
    "treat_missing_header_as_empty": True,
}
"""Response UNIMPLEMENTED of the last route to gRPC calls."""
_ALLOW_READS: Final[Resource] = {"header": {"key": "allow", "value": "GET, HEAD"}}
_STATISTICS_RPC: Final = "ModelStatistics"
_REPOSITORY_RPCS: Final = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
_USE_MANAGEMENT: Final = (
    "the model repository is managed on the management port (8080 by default), not on the gateway"
)
_NO_STREAMS: Final = (
    "the gateway serves unary calls only: call ModelInfer, or stream to a replica that was started "
    "with --grpc-port"
)

_NO_SERVICE: Final = (
    "there is no such gRPC service; inference.GRPCInferenceService, grpc.health.v1.Health and "
    "grpc.reflection.v1.ServerReflection exist"
)


@dataclass(frozen=True, slots=True)
class EndpointRoutes:
    """Routes of one endpoint. Those of all endpoints are grouped: HTTP, gRPC, plain HTTP."""

    http: Sequence[Resource]
    grpc: Sequence[Resource]
    plain: Sequence[Resource]


@dataclass(frozen=True, slots=True)
class ServerRoutes:
    """Routes before those of all endpoints, after them and at the end: the first match wins."""

    before: Sequence[Resource]
    after: Sequence[Resource]
    last: Sequence[Resource]
    largest_reply_bytes: int
    filters: Resource
    """Filter configuration of all routes."""


def route_table(server: ServerRoutes, routes: Sequence[Resource]) -> Resource:
    """Return the route table for every port, given its routes in order."""
    return {
        "name": ROUTE_CONFIG,
        "max_direct_response_body_size_bytes": max(server.largest_reply_bytes, _DIRECT_REPLY_BYTES),
        "validate_clusters": True,  # else a missing cluster gives 503 later
        "request_headers_to_remove": [MODEL_HEADER],
        "response_headers_to_remove": [NOT_STARTED_HEADER, "x-envoy-upstream-service-time"],
        "virtual_hosts": [
            {
                "name": ROUTE_CONFIG,
                "domains": ["*"],
                "retry_policy": _retry_policy(),
                "routes": routes,
                **({"typed_per_filter_config": server.filters} if server.filters else {}),
            }
        ],
    }


def server_routes(
    settings: EnvoySettings,
    guard: AuthFilters,
    limiting: RateLimitPlan,
    endpoints: Sequence[EndpointRoute],
) -> ServerRoutes:
    """Return the routes that concern no single endpoint."""
    from headrace.protocol import pages  # noqa: PLC0415  # loads the codecs

    servers = _reply(503, "no endpoint has a ready replica")
    if all_replicas(endpoints):
        servers = without_credentials(_forward({"cluster": REPLICAS}))
    control = _forward({"cluster": CONTROL})
    statistics = servers if settings.control_address is None else control
    reads_units = any(e.sticky is not None and not e.sticky.header for e in endpoints)
    more_filters = {**(UNIT_IDLE if reads_units else {}), **limiting.first_check(endpoints)}
    last: Resource = {
        "name": "unknown-path",
        "match": {"prefix": "/"},
        **_reply(404, pages.NOT_FOUND),
    }
    plain: Resource = {**last, "match": {"prefix": "/endpoints/"}}
    service: Resource = {"name": "unknown-service", "match": _GRPC_CALL}
    near: Iterable[Resource] = (
        {**last, "match": {"safe_regex": {"regex": pattern}}, **_reply(404, text)}
        for pattern, text in pages.NOT_FOUND_NEAR
    )
    if len(endpoints) == 1:
        invocations = _finished_routes(
            limiting, endpoints[0], _invocation_routes(settings, guard, endpoints[0], _INVOCATIONS)
        )
    else:
        unnamed: Resource = {
            "name": "invocations",
            "match": {"path": _INVOCATIONS},
            **_reply(404, _SEVERAL),
        }
        invocations = (_authenticated(unnamed, guard.server()),)
    # Envoy joins several Host headers, and a server may use either: refuse such requests.
    # https://www.rfc-editor.org/rfc/rfc9112#section-3.2
    several: Resource = {"name": ":authority", "string_match": {"contains": ","}}
    match: Resource = {"prefix": "/", "headers": [several]}
    return ServerRoutes(
        before=(
            {
                "name": "two-hosts",
                "match": match,
                **_reply(400, "the Host header occurs more than once"),
            },
            *_health_routes(endpoints, servers),
            *(_authenticated(route, guard.server()) for route in _server_routes(servers)),
            _authenticated(
                {"name": "statistics", "match": {"path": "/v2/models/stats"}, **statistics},
                guard.every(),
            ),
            *_names_routes(guard, endpoints),
        ),
        after=(
            *_root_routes(guard, endpoints),
            *(
                _openai_server_routes(settings, guard, endpoints, more_filters)
                if any(endpoint.serves_openai for endpoint in endpoints)
                else ()
            ),
            *(() if settings.control_address is None else (_bulk_route(guard),)),
            *_page_routes(settings, servers),
            *_unknown_models(guard, servers),
            *_grpc_server_routes(guard, servers, statistics, more_filters),
            *(() if settings.control_address is None else (_reflection_route(guard),)),
        ),
        last=(
            *invocations,
            _authenticated(plain, guard.unknown()),
            _authenticated({**service, **_reply(404, _NO_SERVICE)}, guard.server()),
            *(_authenticated(route, guard.server()) for route in (*near, last)),
        ),
        largest_reply_bytes=max(
            len(pages.openapi_template().render(endpoint.name for endpoint in endpoints)),
            *(page.file.stat().st_size for page in pages.PAGES),
        ),
        filters=allowing_origins(settings.cors),
    )


def endpoint_routes(
    settings: EnvoySettings, guard: AuthFilters, limiting: RateLimitPlan, endpoint: EndpointRoute
) -> EndpointRoutes:
    """Return the routes of one endpoint."""
    filters = guard.endpoint(endpoint)
    path = f"/endpoints/{endpoint.name}{_INVOCATIONS}"
    plain: Iterable[Resource] = (
        (_authenticated(route, filters) for route in _plain_routes(settings, endpoint))
        if _has_upstream(endpoint)
        else _invocation_routes(settings, guard, endpoint, path)
    )
    return EndpointRoutes(
        http=_finished_routes(
            limiting,
            endpoint,
            (
                *(_openai_routes(settings, guard, endpoint) if endpoint.serves_openai else ()),
                *_http_routes(settings, guard, endpoint),
            ),
        ),
        grpc=_finished_routes(
            limiting,
            endpoint,
            _named_routes(settings, guard, endpoint, _GRPC_CALL, CallProtocol.GRPC),
        ),
        plain=_finished_routes(limiting, endpoint, plain),
    )


def _finished_routes(
    limiting: RateLimitPlan, endpoint: EndpointRoute, routes: Iterable[Resource]
) -> tuple[Resource, ...]:
    """Return routes of an endpoint with its limits and log fields."""
    metadata = log_metadata(endpoint.request_log)
    log_fields = {"metadata": metadata} if metadata else {}
    checking = CHECKING_NAMES if _has_upstream(endpoint) else {}
    return tuple(
        with_filters(
            {**limiting.limited(route, endpoint), **log_fields},
            checking if "route" in route else {},
        )
        for route in routes
    )


def _has_upstream(endpoint: EndpointRoute) -> bool:
    return any(arm.upstream is not None for arm in endpoint.arms)


def _authenticated(route: Resource, filters: Resource) -> Resource:
    """Return `route` for callers that pass `filters`; credentials are not forwarded.

    The control plane returns a held request unchanged, so it must receive it completely.
    """
    if not filters:
        return route
    asking = with_filters(route, filters)
    match route:
        case {"route": {"cluster": cluster}} if cluster == CONTROL:
            return asking
        case {"route": _}:
            return without_credentials(asking)
        case _:
            return asking


def _http_routes(
    settings: EnvoySettings, guard: AuthFilters, endpoint: EndpointRoute
) -> Iterator[Resource]:
    path = f"/v2/models/{endpoint.name}"
    filters = guard.endpoint(endpoint)
    for arm in _versions(endpoint):
        match: Resource = {"path_separated_prefix": f"{path}/versions/{arm.version}"}
        route = _to_version(settings, endpoint, arm, match, protocol=CallProtocol.V2)
        yield _authenticated(route, guard.endpoint(endpoint, arm.version))
    unknown: Resource = {"name": "unknown-version", "match": {"prefix": f"{path}/versions/"}}
    yield _authenticated({**unknown, **_refuse_model()}, filters)
    for route in _to_split(
        settings, endpoint, {"path_separated_prefix": path}, protocol=CallProtocol.V2
    ):
        yield _authenticated(route, filters)
    v1 = f"/v1/models/{endpoint.name}"
    # No name has a colon: only verbs follow.
    for match in ({"path_separated_prefix": v1}, {"prefix": f"{v1}:"}):
        for route in _to_split(settings, endpoint, match, protocol=CallProtocol.V1):
            yield _authenticated(route, filters)


def _openai_routes(
    settings: EnvoySettings, guard: AuthFilters, endpoint: EndpointRoute
) -> Iterator[Resource]:
    """Yield the routes of the model, and of requests whose body named it."""
    from headrace.protocol.pages import openai_model  # noqa: PLC0415  # as above

    names = [alias.name for alias in endpoint.aliases]
    if not any(supports_protocol(arm, CallProtocol.V1) for arm in endpoint.arms):
        names.insert(0, endpoint.name)
    for name in names:
        text = json.dumps(openai_model(name))
        for route in _document(endpoint.name, {"path": f"/v1/models/{name}"}, text):
            yield _authenticated(route, guard.endpoint(endpoint))
    buffer: Resource = {"request_body_buffer_limit": settings.max_body_bytes}
    for route in _named_routes(settings, guard, endpoint, _OPENAI_PATH, CallProtocol.OPENAI):
        yield with_filters({**route, **buffer}, OPENAI_MEASURING)


def _named_routes(
    settings: EnvoySettings,
    guard: AuthFilters,
    endpoint: EndpointRoute,
    match: Resource,
    protocol: CallProtocol,
) -> Iterator[Resource]:
    """Yield the routes of requests whose message or body named the model."""
    targets = [(cluster_name(endpoint.name, arm.key), arm) for arm in _versions(endpoint)]
    if protocol is CallProtocol.OPENAI and endpoint.shadow is not None and endpoint.counts_copies:
        targets.append((shadow_route(endpoint.name), endpoint.shadow))
    for name, arm in targets:
        named = {**match, "headers": [_header_is(MODEL_HEADER, name)]}
        route = _to_version(settings, endpoint, arm, named, protocol=protocol)
        yield _authenticated({**route, "name": name}, guard.grpc_endpoint(endpoint, arm.version))
    unversioned = {**match, "headers": [_header_is(MODEL_HEADER, endpoint.name)]}
    for route in _to_split(settings, endpoint, unversioned, protocol=protocol):
        yield _authenticated(route, guard.grpc_endpoint(endpoint))


def _openai_server_routes(
    settings: EnvoySettings,
    guard: AuthFilters,
    endpoints: Sequence[EndpointRoute],
    more_filters: Resource,
) -> Iterator[Resource]:
    """Yield the first pass of requests of OpenAI's API, and those for unknown models."""
    unknown: Resource = {
        "name": "unknown-model",
        "match": {**_OPENAI_PATH, "headers": [_header_is_set(MODEL_HEADER)]},
        **_refuse_model(),
    }
    yield _authenticated(unknown, guard.grpc_unknown())
    is_post: Resource = {"name": ":method", "string_match": {"exact": "POST"}}
    first: Resource = {
        "name": "unnamed-model",
        "match": {**_OPENAI_PATH, "headers": [is_post]},
        # Never taken: the script responds or chooses another route. Only a route with a cluster
        # has a buffer limit.
        "route": {"cluster_header": MODEL_HEADER},
        "request_body_buffer_limit": settings.max_body_bytes,
    }
    filters = {**reading_openai(endpoints), **more_filters}
    yield _authenticated(with_filters(first, filters), guard.grpc_check())
    other: Resource = {
        "name": "unnamed-model",
        "match": _OPENAI_PATH,
        **_reply(405, "Method Not Allowed"),
        "response_headers_to_add": [set_header("allow", "POST")],
    }
    yield _authenticated(other, guard.server())


def _bulk_route(guard: AuthFilters) -> Resource:
    """Return the route of files and batches, which the control plane serves for each API key.

    It receives the key, so callers that use it nowhere else send it here, too.
    """
    route: Resource = {
        "name": "openai-bulk",
        "match": {"safe_regex": {"regex": BULK_PATHS}},
        **_forward({"cluster": CONTROL}, timeout=seconds(_UPLOAD_TIMEOUT_S)),
    }
    return _authenticated(route, guard.some())


def _plain_routes(settings: EnvoySettings, endpoint: EndpointRoute) -> Iterator[Resource]:
    """Yield routes of `/endpoints/NAME/...` to the upstream, with this prefix removed."""
    match: Resource = {"prefix": f"/endpoints/{endpoint.name}/"}
    for route in _to_split(settings, endpoint, match, protocol=CallProtocol.PLAIN):
        action = route.get("route")
        if isinstance(action, Mapping) and action.get("cluster") != CONTROL:
            yield {**route, "route": {**action, "prefix_rewrite": "/"}}
        else:
            yield route


def _invocation_routes(
    settings: EnvoySettings, guard: AuthFilters, endpoint: EndpointRoute, path: str
) -> Iterator[Resource]:
    """Yield routes of predictions in MLflow's protocol; replicas know them by the endpoint."""
    match: Resource = {"path_separated_prefix": path}
    filters = guard.endpoint(endpoint)
    known_as = f"/endpoints/{endpoint.name}{_INVOCATIONS}"
    for route in _to_split(settings, endpoint, match, protocol=CallProtocol.PLAIN):
        action = route.get("route")
        is_ours = path == known_as or _has_upstream(endpoint)
        if is_ours or not isinstance(action, Mapping) or action.get("cluster") == CONTROL:
            yield _authenticated(route, filters)
        else:
            renamed: Resource = {**route, "route": {**action, "prefix_rewrite": known_as}}
            yield _authenticated(renamed, filters)


def _versions(endpoint: EndpointRoute) -> Iterator[RevisionTarget]:
    """Yield the arms that a version number selects: those without a role."""
    return (arm for arm in endpoint.arms if not arm.role)


def _unknown_models(guard: AuthFilters, servers: Resource) -> Iterator[Resource]:
    # Triton responds to this with "not ready" in its own message rather than an error.
    not_ready: Resource = {
        "name": "unknown-model",
        "match": {**_rpc_match("ModelReady"), "headers": [_header_is_set(MODEL_HEADER)]},
        **_grpc_version(servers),
    }
    yield _authenticated(not_ready, guard.grpc_unknown())
    unknown: Resource = {
        "name": "unknown-model",
        "match": {**_GRPC_CALL, "headers": [_header_is_set(MODEL_HEADER)]},
        **_refuse_model(),
    }
    yield _authenticated(unknown, guard.grpc_unknown())
    for version in ("v1", "v2"):
        unknown = {
            "name": "unknown-model",
            "match": {"prefix": f"/{version}/models/"},
            **_refuse_model(),
        }
        yield _authenticated(unknown, guard.unknown())


def _health_routes(endpoints: Sequence[EndpointRoute], servers: Resource) -> Iterator[Resource]:
    """Yield the public routes of liveness and readiness, which load balancers call."""
    yield from _document("live", {"path": "/v2/health/live"}, '{"live":true}')
    answers = any(e.held or any(arm.is_live for arm in e.arms) for e in endpoints)
    if answers and not all_replicas(endpoints):
        yield from _document("server", {"path": "/v2/health/ready"}, '{"ready":true}')
        yield from _document("server", {"path": "/ping"}, '{"ready":true}')
    else:
        for path in ("/v2/health/ready", "/ping"):
            yield {"name": "server", "match": {"path": path}, **servers}


def _server_routes(servers: Resource) -> Iterator[Resource]:
    """Yield server-level HTTP routes; they precede endpoints, which must not hide them."""
    for path in ("/v2", "/v2/"):
        yield {"name": "server", "match": {"path": path}, **servers}
    for path in _PATHS_OF_ANY_REPLICA:
        yield {"name": "server", "match": {"path_separated_prefix": path}, **servers}
    yield {
        "name": "repository",
        "match": {"path_separated_prefix": "/v2/repository"},
        **_reply(403, _USE_MANAGEMENT),
    }


def _names_routes(guard: AuthFilters, endpoints: Sequence[EndpointRoute]) -> Iterator[Resource]:
    from headrace.protocol import pages  # noqa: PLC0415  # as above

    has_openai = any(endpoint.serves_openai for endpoint in endpoints)
    v1 = pages.openai_names_template() if has_openai else pages.names_template()
    for path, template in (("/v1/models", v1), ("/v2/models", pages.names_template())):
        yield from _list(guard, endpoints, "models", {"path": path}, template)


def _root_routes(guard: AuthFilters, endpoints: Sequence[EndpointRoute]) -> Iterator[Resource]:
    """Yield the routes of `/` and `/openapi.json`. `/` is public: it is KServe's V1 liveness."""
    from headrace.protocol import pages  # noqa: PLC0415  # as above

    is_browser: Resource = {"name": "accept", "string_match": {"contains": "text/html"}}
    page: Resource = {"path": "/", "headers": [is_browser]}
    # Without authentication the version of a public gateway is not shown.
    root = pages.root_template(version="" if guard.closed else __version__)
    yield from _list(guard, endpoints, "root", page, pages.root_page(), is_public=True)
    yield from _list(guard, endpoints, "root", {"path": "/"}, root, is_public=True)
    openapi = {"path": "/openapi.json"}
    yield from _list(guard, endpoints, "openapi", openapi, pages.openapi_template())


def _list(
    guard: AuthFilters,
    endpoints: Sequence[EndpointRoute],
    name: str,
    match: Resource,
    template: "ListTemplate",
    *,
    is_public: bool = False,
) -> Iterator[Resource]:
    """Yield the routes of a document with the endpoints that the caller may use."""
    text = template.render(
        sorted(endpoint.name for endpoint in endpoints),
        (
            name
            for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.name)
            if endpoint.serves_openai
            for name in (endpoint.name, *(alias.name for alias in endpoint.aliases))
        ),
    )
    filters = guard.listing(endpoints, template, is_public=is_public)
    for route in _document(name, match, text, content_type=template.content_type):
        yield _authenticated(route, filters)


def _page_routes(settings: EnvoySettings, servers: Resource) -> Iterator[Resource]:
    """Yield the routes of static files, which are public: they are the same for all callers."""
    from headrace.protocol.pages import PAGES  # noqa: PLC0415  # as above

    if not settings.has_pages:
        yield {"name": "docs", "match": {"path_separated_prefix": "/docs"}, **servers}
        return
    for page in PAGES:
        yield {
            "name": "docs",
            "match": {"path": page.path, "headers": [_READS]},
            "direct_response": {"status": 200, "body": {"filename": str(page.file)}},
            "response_headers_to_add": [set_header(name, value) for name, value in page.headers],
        }


def _document(
    name: str, match: Resource, text: str, *, content_type: str = "application/json"
) -> Iterator[Resource]:
    """Yield the routes of a document that Envoy itself returns, for `GET` and `HEAD` only."""
    headers = match.get("headers", ())
    assert isinstance(headers, Sequence)
    yield {
        "name": name,
        "match": {**match, "headers": [*headers, _READS]},
        **_reply(200, text),
        "response_headers_to_add": [set_header("content-type", content_type)],
    }
    yield {
        "name": name,
        "match": {**match, "headers": [*headers, _NO_GRPC]},
        **_reply(405, "Method Not Allowed"),
        "response_headers_to_add": [_ALLOW_READS],
    }


def _grpc_server_routes(
    guard: AuthFilters, servers: Resource, statistics: Resource, more_filters: Resource
) -> Iterator[Resource]:
    """Yield gRPC routes by method: the first pass of calls that name a model, and all others.

    Calls without a name or with an invalid message go to a replica, which reports the error.
    """
    encoded: Resource = {"headers": [_header_is_set("grpc-encoding")]}
    first: list[tuple[str, Resource, Resource]] = [
        ("unnamed-model", _rpc_match(rpc), servers) for rpc in MODEL_RPCS if rpc != _STATISTICS_RPC
    ]
    first += [
        ("statistics", _rpc_match(_STATISTICS_RPC), statistics),
        ("health", {"path": f"/{HEALTH_CHECK}", "grpc": {}}, servers),
    ]
    for name, match, action in first:
        check = guard.grpc_check(health=name == "health", every=name == "statistics")
        for fits, reading in (({**match, **encoded}, INFLATING), (match, SELECTING)):
            route: Resource = {"name": name, "match": fits, **_grpc_version(action)}
            yield _authenticated(with_filters(route, {**reading, **more_filters}), check)
    # A 404 of Envoy reaches gRPC callers as UNIMPLEMENTED.
    streams: Resource = {"name": "stream", "match": _rpc_match("ModelStreamInfer")}
    yield _authenticated({**streams, **_reply(404, _NO_STREAMS)}, guard.server())
    for rpc in _REPOSITORY_RPCS:
        repository: Resource = {"name": "repository", "match": _rpc_match(rpc)}
        yield _authenticated({**repository, **_reply(403, _USE_MANAGEMENT)}, guard.server())
    any_rpc: Resource = {
        "name": "server",
        "match": {"prefix": f"/{SERVICE}/", "grpc": {}},
        **_grpc_version(servers),
    }
    yield _authenticated(with_filters(any_rpc, BRIDGING), guard.server())


def _reflection_route(guard: AuthFilters) -> Resource:
    route: Resource = {
        "name": "reflection",
        "match": {"prefix": REFLECTION_PREFIX, "grpc": {}},
        **_grpc_version(_forward({"cluster": CONTROL})),
    }
    return _authenticated(with_filters(route, BRIDGING), guard.server())


def _to_version(
    settings: EnvoySettings,
    endpoint: EndpointRoute,
    arm: RevisionTarget,
    match: Resource,
    *,
    protocol: CallProtocol,
) -> Resource:
    if endpoint.paused:
        action = _paused(endpoint)
    elif not supports_protocol(arm, protocol):
        action = _reply(404, _unsupported_protocol(endpoint, arm, protocol))
    elif arm.is_live:
        action = arm_action(
            endpoint, arm, _limits(settings, endpoint.timeout_s, protocol), protocol
        )
    else:
        action = _not_ready(settings, endpoint, match, arm.version)
    return {"name": cluster_name(endpoint.name, arm.key), "match": match, **action}


def _to_split(
    settings: EnvoySettings, endpoint: EndpointRoute, match: Resource, *, protocol: CallProtocol
) -> Iterator[Resource]:
    """Yield the routes of unversioned requests: several if a key decides."""
    split = live_split(endpoint)
    mute = next((arm for arm, _ in split if not supports_protocol(arm, protocol)), None)
    fallbacks = len(endpoint.fallbacks) if protocol is CallProtocol.OPENAI else 0
    if endpoint.paused:
        action = _paused(endpoint)
    elif not split and fallbacks and not endpoint.held:
        target: Resource = {"cluster": fallback_cluster(endpoint.name, "")}
        limits = _limits(settings, endpoint.timeout_s, protocol, fallbacks=fallbacks - 1)
        action = _forward(target, **limits)
    elif not split:
        action = _not_ready(settings, endpoint, match)
    elif mute is not None:
        # Not the other arms alone: that would be another split than the configured one.
        action = _reply(404, _unsupported_protocol(endpoint, mute, protocol))
    else:
        limits = _limits(settings, endpoint.timeout_s, protocol, fallbacks=fallbacks)
        for variant in split_variants(endpoint, limits, protocol=protocol):
            headers = variant.headers
            present = match.get("headers", ())
            assert isinstance(present, Sequence)
            narrowed = {**match, "headers": [*present, *headers]} if headers else match
            yield {"name": endpoint.name, "match": narrowed, **variant.action}
        return
    yield {"name": endpoint.name, "match": match, **action}


def _unsupported_protocol(
    endpoint: EndpointRoute, arm: RevisionTarget, protocol: CallProtocol
) -> str:
    return f"version {arm.version} of endpoint '{endpoint.name}' does not speak {protocol.value}"


def _paused(endpoint: EndpointRoute) -> Resource:
    return {
        **_reply(503, f"endpoint '{endpoint.name}' is paused"),
        "response_headers_to_add": [set_header("retry-after", _PAUSED_RETRY_S)],
    }


def _not_ready(
    settings: EnvoySettings, endpoint: EndpointRoute, match: Resource, version: str = ""
) -> Resource:
    """Return the route without live arms: the control plane holds the request, or it is refused.

    A held request returns as a redirect to itself once a replica is ready. Envoy then takes the
    buffered request and chooses its route again, in the current table. (The endpoint is named in
    the path: a header that this route added would be freed with the old table, while Envoy still
    sends it.)
    """
    if not endpoint.held or settings.control_address is None:
        return _reply(503, str(ModelNotReadyError(endpoint.name, version)))
    held = f"{HELD_PREFIX}{endpoint.name}"
    if "safe_regex" in match:
        whole: Resource = {"pattern": {"regex": "^.*$"}, "substitution": f"{held}\\0"}
        rewrite: Resource = {"regex_rewrite": whole}
    else:
        prefix = match.get("path_separated_prefix", match.get("prefix"))
        rewrite = {"prefix_rewrite": f"{held}{prefix}"}
    longest = seconds(endpoint.hold_s + _HOLD_GRACE_S)
    idle = seconds(max(endpoint.hold_s + _HOLD_GRACE_S, settings.connections.idle_timeout_s))
    redirect: Resource = {
        "max_internal_redirects": _MAX_REDIRECTS,
        "redirect_response_codes": [_HELD_STATUS],
    }
    return {
        "route": {
            "cluster": CONTROL,
            **rewrite,
            "timeout": longest,
            "idle_timeout": idle,
            "internal_redirect_policy": redirect,
        }
    }


def _forward(target: Resource, **limits: Json) -> Resource:
    return {"route": {**target, **(limits or {"timeout": seconds(_SERVER_TIMEOUT_S)})}}


def _grpc_version(action: Resource) -> Resource:
    """Return a server-level action for gRPC: the caller's `grpc-timeout` applies."""
    match action:
        case {"route": {"cluster": cluster}}:
            limit = seconds(_SERVER_TIMEOUT_S)
            limits: Resource = {"max_stream_duration": limit, "grpc_timeout_header_max": limit}
            return {**action, "route": {"cluster": cluster, "max_stream_duration": limits}}
        case _:
            return action


def _limits(
    settings: EnvoySettings,
    timeout_s: float | None,
    protocol: CallProtocol,
    *,
    fallbacks: int = 0,
) -> Resource:
    """Return Envoy's timeout: `timeout` for HTTP, `max_stream_duration` for gRPC, never both.

    A route that has both ignores `timeout`. Zero means none. The limits of OpenAI's API
    include retries, and the prompt by which a server is chosen.

    Args:
        fallbacks: How many endpoints answer in turn what the first does not; each has the whole
            time.
    """
    limit = seconds(0 if timeout_s is None else timeout_s + _TIMEOUT_GRACE_S)
    idle_s = _IDLE_WITHOUT_TIMEOUT_S if timeout_s is None else timeout_s + _SERVER_TIMEOUT_S
    # The connection's own limit applies anyway; it is not repeated in a table of thousands of
    # routes.
    idle: Resource = (
        {"idle_timeout": seconds(idle_s)} if idle_s > settings.connections.idle_timeout_s else {}
    )
    if protocol is CallProtocol.GRPC:
        limits: Resource = {"max_stream_duration": limit, "grpc_timeout_header_max": limit}
        return {**idle, "max_stream_duration": limits}
    if protocol is CallProtocol.OPENAI:
        # Time to the first token, and between tokens: a generation may take longer than that.
        policy = _fallback_policy(fallbacks) if fallbacks else _retry_policy() if timeout_s else {}
        if timeout_s:
            policy = {**policy, "per_try_idle_timeout": limit}
            idle_s += fallbacks * (timeout_s + _TIMEOUT_GRACE_S)
        return {
            "hash_policy": [{"filter_state": {"key": PREFIX_STATE}}],
            "timeout": seconds(0),
            "max_stream_duration": {"grpc_timeout_header_max": seconds(0)},  # a caller's deadline
            "idle_timeout": seconds(idle_s),
            **({"retry_policy": policy} if policy else {}),
        }
    return {**idle, "timeout": limit}


def _retry_policy() -> Resource:
    """Return a policy that retries on another replica only what no replica has begun.

    A request body beyond Envoy's buffer (1 MiB over HTTP/1.1) is sent once.
    """
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-headers",
        "retriable_headers": [{"name": NOT_STARTED_HEADER, "string_match": {"exact": "1"}}],
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.100s"},
        "retry_host_predicate": [
            {
                "name": "headrace.previous_hosts",
                "typed_config": any_of(
                    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                ),
            }
        ],
        # Least-request prefers a dead replica, which has no requests: many draws are needed to
        # leave it.
        "host_selection_retry_max_attempts": 32,
    }


def _fallback_policy(count: int) -> Resource:
    """Return a policy that sends what a server fails to answer to the next of `count` fallbacks.

    Envoy retries nothing once a response began, nor a body beyond the route's buffer.
    """
    return {
        "retry_on": "5xx,retriable-status-codes",
        "retriable_status_codes": [_TOO_MANY_REQUESTS],
        "num_retries": count,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    }


def _reply(status: int, text: str) -> Resource:
    body: Resource = {"body": {"inline_string": text}} if text else {}
    return {"direct_response": {"status": status, **body}}


def _refuse_model() -> Resource:
    return {**_reply(404, ""), "typed_per_filter_config": REFUSING}


def _rpc_match(rpc: str) -> Resource:
    return {"path": f"/{SERVICE}/{rpc}", "grpc": {}}


def _header_is(name: str, value: str) -> Resource:
    return {"name": name, "string_match": {"exact": value}}


def _header_is_set(name: str) -> Resource:
    return {"name": name, "present_match": True}
