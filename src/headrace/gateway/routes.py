"""Which request goes to which revision: by path for HTTP, by the body's model name for gRPC.

Routes are tried in order. gRPC calls are routed twice: first by method, then, once the name of
the model was read from the message and set as a header, by that header.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Final

from headrace.core import ModelNotReadyError
from headrace.gateway.clusters import (
    CONTROL,
    REPLICAS,
    all_replicas,
    cluster_name,
    live_split,
)
from headrace.gateway.filters import (
    BRIDGING,
    HEALTH_CHECK,
    MODEL_HEADER,
    MODEL_RPCS,
    REFUSING,
    SELECTING,
    SERVICE,
    VERSION_HEADER,
)
from headrace.gateway.resources import Json, Resource, any_of, seconds
from headrace.gateway.settings import EndpointRoute, GatewaySettings

ROUTE_CONFIG: Final = "headrace"
NOT_STARTED_HEADER: Final = "x-headrace-not-started"
"""A replica sets it to 1 on a 503 for a request that it did not begin: another may take it."""

_SERVER_TIMEOUT_S: Final = 30.0
# A replica answers at the deadline itself and says why; Envoy cuts what it did not answer by then.
_TIMEOUT_GRACE_S: Final = 0.5
_IDLE_WITHOUT_TIMEOUT_S: Final = 3600.0
_PATHS_OF_ANY_REPLICA: Final = (
    "/v2/systemsharedmemory",
    "/v2/cudasharedmemory",
    "/v2/trace",
    "/v2/logging",
)
_DIRECT_REPLY_BYTES: Final = 4096  # Envoy's own default
_STATISTICS_RPC: Final = "ModelStatistics"
_REPOSITORY_RPCS: Final = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
_USE_MANAGEMENT: Final = (
    "the model repository is managed on the management port (8080 by default), not on the gateway"
)
_NO_STREAMS: Final = (
    "the gateway serves unary calls only: call ModelInfer, or stream to a replica that was started "
    "with --grpc-port"
)


def build_routes(settings: GatewaySettings, endpoints: Sequence[EndpointRoute]) -> Resource:
    """The route table for every port."""
    listing = json.dumps({"models": sorted(endpoint.name for endpoint in endpoints)})
    return {
        "name": ROUTE_CONFIG,
        "max_direct_response_body_size_bytes": max(len(listing), _DIRECT_REPLY_BYTES),
        "validate_clusters": True,  # by default Envoy takes a route to nowhere and answers 503
        "request_headers_to_remove": [MODEL_HEADER, VERSION_HEADER],
        "response_headers_to_remove": [NOT_STARTED_HEADER, "x-envoy-upstream-service-time"],
        "virtual_hosts": [
            {
                "name": ROUTE_CONFIG,
                "domains": ["*"],
                "retry_policy": _retry_policy(),
                "routes": list(_routes(settings, endpoints, listing)),
            }
        ],
    }


def _routes(
    settings: GatewaySettings, endpoints: Sequence[EndpointRoute], listing: str
) -> Iterator[Resource]:
    servers = _servers(endpoints)
    control = _forward({"cluster": CONTROL})
    statistics = servers if settings.control_address is None else control
    yield from _server_routes(servers, statistics)
    yield from _listings(listing)
    for endpoint in endpoints:
        yield from _http_routes(settings, endpoint)
    for endpoint in endpoints:
        yield from _grpc_routes(settings, endpoint)
    yield from _unknown_models(servers)
    yield from _grpc_server_routes(servers, statistics)
    yield {"name": "unknown-path", "match": {"prefix": "/"}, **_reply(404, "Not Found")}


def _http_routes(settings: GatewaySettings, endpoint: EndpointRoute) -> Iterator[Resource]:
    path = f"/v2/models/{endpoint.name}"
    for revision in endpoint.revisions:
        yield {
            "name": cluster_name(endpoint.name, revision.version),
            "match": {"path_separated_prefix": f"{path}/versions/{revision.version}"},
            **_to_version(settings, endpoint, revision.version, grpc=False),
        }
    yield {
        "name": "unknown-version",
        "match": {"prefix": f"{path}/versions/"},
        **_refuse_model(),
    }
    unversioned = _to_split(settings, endpoint, grpc=False)
    for match in (
        {"path_separated_prefix": path},
        {"path_separated_prefix": f"/v1/models/{endpoint.name}"},
        {"prefix": f"/v1/models/{endpoint.name}:"},  # no name has a colon: only verbs follow
    ):
        yield {"name": endpoint.name, "match": match, **unversioned}


def _grpc_routes(settings: GatewaySettings, endpoint: EndpointRoute) -> Iterator[Resource]:
    named = _header_is(MODEL_HEADER, endpoint.name)
    for revision in endpoint.revisions:
        yield {
            "name": cluster_name(endpoint.name, revision.version),
            "match": _grpc_match(named, _header_is(VERSION_HEADER, revision.version)),
            **_to_version(settings, endpoint, revision.version, grpc=True),
        }
    yield {
        "name": endpoint.name,
        "match": _grpc_match(named, {"name": VERSION_HEADER, "present_match": False}),
        **_to_split(settings, endpoint, grpc=True),
    }


def _unknown_models(servers: Resource) -> Iterator[Resource]:
    # Triton answers this one with "not ready" rather than an error, in a message of its own.
    yield {
        "name": "unknown-model",
        "match": {**_rpc_match("ModelReady"), "headers": [_header_is_set(MODEL_HEADER)]},
        **_grpc_version(servers),
    }
    yield {
        "name": "unknown-model",
        "match": _grpc_match(_header_is_set(MODEL_HEADER)),
        **_refuse_model(),
    }
    for version in ("v1", "v2"):
        yield {
            "name": "unknown-model",
            "match": {"prefix": f"/{version}/models/"},
            **_refuse_model(),
        }


def _server_routes(servers: Resource, statistics: Resource) -> Iterator[Resource]:
    """HTTP requests about the server; before the endpoints, because no endpoint may hide them."""
    yield {"name": "live", "match": {"path": "/v2/health/live"}, **_reply(200, "")}
    for path in ("/v2", "/v2/health/ready"):
        yield {"name": "server", "match": {"path": path}, **servers}
    for path in _PATHS_OF_ANY_REPLICA:
        yield {"name": "server", "match": {"path_separated_prefix": path}, **servers}
    yield {"name": "statistics", "match": {"path": "/v2/models/stats"}, **statistics}
    yield {
        "name": "repository",
        "match": {"path_separated_prefix": "/v2/repository"},
        **_reply(403, _USE_MANAGEMENT),
    }


def _listings(listing: str) -> Iterator[Resource]:
    is_json: Resource = {"header": {"key": "content-type", "value": "application/json"}}
    for path in ("/v1/models", "/v2/models"):
        yield {
            "name": "models",
            "match": {"path": path},
            **_reply(200, listing),
            "response_headers_to_add": [{**is_json, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        }


def _grpc_server_routes(servers: Resource, statistics: Resource) -> Iterator[Resource]:
    """Calls over gRPC by method: the first look at those that name a model, and all others.

    One that names none, or is no message at all, goes to a replica, which says what is wrong.
    """
    unnamed = {**_grpc_version(servers), "typed_per_filter_config": SELECTING}
    for rpc in MODEL_RPCS:
        if rpc != _STATISTICS_RPC:
            yield {"name": "unnamed-model", "match": _rpc_match(rpc), **unnamed}
    named_or_not: Sequence[tuple[str, Resource, Resource]] = (
        ("statistics", _rpc_match(_STATISTICS_RPC), statistics),
        ("health", {"path": f"/{HEALTH_CHECK}", "grpc": {}}, servers),
    )
    for name, match, action in named_or_not:
        selected = {**_grpc_version(action), "typed_per_filter_config": SELECTING}
        yield {"name": name, "match": match, **selected}
    bridging: Resource = {"typed_per_filter_config": BRIDGING}
    # A 404 of Envoy reaches gRPC callers as UNIMPLEMENTED.
    yield {"name": "stream", "match": _rpc_match("ModelStreamInfer"), **_reply(404, _NO_STREAMS)}
    for rpc in _REPOSITORY_RPCS:
        yield {"name": "repository", "match": _rpc_match(rpc), **_reply(403, _USE_MANAGEMENT)}
    any_rpc: Resource = {"prefix": f"/{SERVICE}/", "grpc": {}}
    yield {"name": "server", "match": any_rpc, **_grpc_version(servers), **bridging}


def _servers(endpoints: Sequence[EndpointRoute]) -> Resource:
    if all_replicas(endpoints):
        return _forward({"cluster": REPLICAS})
    return _reply(503, "no endpoint has a ready replica")


def _to_version(
    settings: GatewaySettings, endpoint: EndpointRoute, version: str, *, grpc: bool
) -> Resource:
    revision = next(r for r in endpoint.revisions if r.version == version)
    if not revision.replicas:
        return _reply(503, str(ModelNotReadyError(endpoint.name, version)))
    target: Resource = {"cluster": cluster_name(endpoint.name, version)}
    return _forward(target, **_limits(settings, endpoint.timeout_s, grpc=grpc))


def _to_split(settings: GatewaySettings, endpoint: EndpointRoute, *, grpc: bool) -> Resource:
    split = live_split(endpoint)
    if not split:
        return _reply(503, str(ModelNotReadyError(endpoint.name)))
    names = [cluster_name(endpoint.name, revision.version) for revision in split]
    if len(split) == 1:
        target: Resource = {"cluster": names[0]}
    else:
        weights = [revision.weight for revision in split]
        clusters: list[Json] = [
            {"name": name, "weight": weight} for name, weight in zip(names, weights, strict=True)
        ]
        target = {"weighted_clusters": {"clusters": clusters}}
    return _forward(target, **_limits(settings, endpoint.timeout_s, grpc=grpc))


def _forward(target: Resource, **limits: Json) -> Resource:
    return {"route": {**target, **(limits or {"timeout": seconds(_SERVER_TIMEOUT_S)})}}


def _grpc_version(action: Resource) -> Resource:
    """A server-level action for gRPC: the caller's `grpc-timeout` counts."""
    match action:
        case {"route": {"cluster": cluster}}:
            limit = seconds(_SERVER_TIMEOUT_S)
            limits: Resource = {"max_stream_duration": limit, "grpc_timeout_header_max": limit}
            return {"route": {"cluster": cluster, "max_stream_duration": limits}}
        case _:
            return action


def _limits(settings: GatewaySettings, timeout_s: float | None, *, grpc: bool) -> dict[str, Json]:
    """When Envoy gives up. HTTP takes `timeout`, gRPC `max_stream_duration`: never both.

    A route that has both ignores `timeout`. Zero means none.
    """
    limit = seconds(0 if timeout_s is None else timeout_s + _TIMEOUT_GRACE_S)
    idle_s = _IDLE_WITHOUT_TIMEOUT_S if timeout_s is None else timeout_s + _SERVER_TIMEOUT_S
    idle = seconds(max(idle_s, settings.idle_timeout_s))
    if grpc:
        limits: Resource = {"max_stream_duration": limit, "grpc_timeout_header_max": limit}
        return {"idle_timeout": idle, "max_stream_duration": limits}
    return {"idle_timeout": idle, "timeout": limit}


def _retry_policy() -> Resource:
    """Try another replica, but only with what no replica has begun.

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
        # Least-request prefers a dead replica, which has no requests: it takes many draws to
        # leave it.
        "host_selection_retry_max_attempts": 32,
    }


def _reply(status: int, text: str) -> Resource:
    body: Resource = {"body": {"inline_string": text}} if text else {}
    return {"direct_response": {"status": status, **body}}


def _refuse_model() -> Resource:
    return {**_reply(404, ""), "typed_per_filter_config": REFUSING}


def _grpc_match(*headers: Resource) -> Resource:
    return {"prefix": "/", "grpc": {}, "headers": headers}


def _rpc_match(rpc: str) -> Resource:
    return {"path": f"/{SERVICE}/{rpc}", "grpc": {}}


def _header_is(name: str, value: str) -> Resource:
    return {"name": name, "string_match": {"exact": value}}


def _header_is_set(name: str) -> Resource:
    return {"name": name, "present_match": True}
