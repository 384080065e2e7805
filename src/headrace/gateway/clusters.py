"""Envoy clusters of the arms' replicas: load balancing, ejection, limits."""

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from headrace.core.headers import KEY_HEADER, TARGET_HEADER
from headrace.core.settings import OPENAI_PORT, OPENAI_SUFFIX
from headrace.gateway.resources import (
    UPSTREAM_NAME,
    Json,
    Resource,
    address_of,
    http_options,
    load_assignment,
    seconds,
    set_header,
    socket_address,
    typed,
    upstream_metadata,
)
from headrace.gateway.scripts import RenameTarget, fallback_source
from headrace.gateway.settings import (
    EndpointRoute,
    EnvoySettings,
    FallbackTarget,
    LimitsTarget,
    RevisionTarget,
    is_ip,
    parse_address,
    parse_url,
)
from headrace.gateway.tls import LIMITS_TLS, api_key_filter, upstream_socket
from headrace.gateway.tracing import collector_cluster
from headrace.gateway.upstreams import (
    BY_LOAD,
    balance_by_prefix,
    circuit_breakers,
    outlier_detection,
    reach_checks,
    rename_filters,
    rename_target,
    upstream_cluster,
)

REPLICAS: Final = "replicas"
"""Name of the cluster of all ready replicas, for requests that name no endpoint."""
CONTROL: Final = "control"
"""Name of the cluster of the control plane's own port."""
LIMITS: Final = "limits"
"""Name of the cluster of the rate limit service."""
SHADOW: Final = "shadow"
"""Name of the cluster and the listener within Envoy by which copies reach a language model."""

_MUTATION: Final = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
_CONNECT_TIMEOUT_S: Final = 1.0
_SERVICE_CONNECT_TIMEOUT_S: Final = 0.25
# Shorter than a replica's idle timeout (300 s), so that Envoy closes first: a request sent into a
# connection that the replica is closing would be lost.
_UPSTREAM_IDLE_S: Final = 60.0


_OPENAI: Final = "~openai"
"""Suffix of the cluster of the servers of OpenAI's API in an arm's replicas; no role of an arm."""
_FALLBACK: Final = "~fallback"
"""Suffix of the cluster of an arm's servers and of those that answer in their place; no role."""
_COMPOSITE: Final = "envoy.extensions.clusters.composite.v3.ClusterConfig"
_MAX_REQUESTS: Final = 2**31 - 1


def cluster_name(endpoint: str, key: str) -> str:
    """Return the name of the cluster of the arm `key`; unique, as endpoint names have no tilde."""
    return f"{endpoint}~{key}"


def openai_cluster(endpoint: str, arm: RevisionTarget) -> str:
    """Return the name of the cluster of an arm's servers of OpenAI's API."""
    return f"{cluster_name(endpoint, arm.key)}{_OPENAI if arm.openai else ''}"


def fallback_cluster(endpoint: str, key: str) -> str:
    """Return the name of the cluster of the arm `key` and of the endpoint's fallbacks.

    Args:
        key: Empty for that of an endpoint without a live arm.
    """
    return f"{cluster_name(endpoint, key)}{_FALLBACK}"


def shadow_route(endpoint: str) -> str:
    """Return the name of the route of an endpoint's copies, and their model; no key of an arm."""
    return f"{endpoint}~{SHADOW}"


def servers_file(endpoint: str, arm: RevisionTarget) -> str:
    """Return the file for the servers of an arm's upstream; empty if they cannot have weights.

    They can if they serve OpenAI's API without TLS behind a name, which is part of the file's name.
    """
    if arm.upstream is None or not arm.serves_openai:
        return ""
    server = parse_url(arm.upstream.url)
    text = f"{cluster_name(endpoint, arm.key)} {server.host}:{server.port}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return "" if server.is_ip or server.is_tls else f"servers.{digest}.json"


def weighted_servers(endpoint: str, arm: RevisionTarget, weights: Mapping[str, int]) -> Resource:
    """Return the content of `servers_file`.

    Args:
        weights: Weights by IP address.
    """
    assert arm.upstream is not None
    name, port = cluster_name(endpoint, arm.key), parse_url(arm.upstream.url).port
    servers: Json = [
        {
            "endpoint": {"address": socket_address(ip, port)},
            "load_balancing_weight": weight,
            **upstream_metadata(name),
        }
        for ip, weight in weights.items()
    ]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": servers}]}


def stat_name(cluster: str) -> str:
    """Return `cluster` as Envoy's metrics name it: a dot would split the metric's name."""
    return cluster.replace(".", "+")


def arm_of(cluster: str) -> tuple[str, str] | None:
    """Return endpoint and arm key of a cluster or its metric name; None for other clusters.

    (Endpoint names have no plus sign either.)
    """
    endpoint, tilde, key = cluster.removesuffix(_FALLBACK).removesuffix(_OPENAI).partition("~")
    return (endpoint.replace("+", "."), key) if tilde else None


def endpoint_clusters(settings: EnvoySettings, endpoint: EndpointRoute) -> Iterator[Resource]:
    """Yield one cluster per live arm, one more for sockets of OpenAI's API, and with fallbacks."""
    for arm in endpoint.arms:
        name = cluster_name(endpoint.name, arm.key)
        if arm.upstream is not None:
            yield upstream_cluster(settings, name, endpoint.name, arm.upstream, arm.servers_file)
        elif arm.replicas:
            yield _cluster(settings, name, arm.replicas, is_named=arm.encodes)
            if arm.openai:
                name = openai_cluster(endpoint.name, arm)
                addresses = list(map(_openai_address, arm.replicas))
                yield _cluster(settings, name, addresses, is_named=True, is_llama=True)
    if endpoint.fallbacks:
        live = [arm for arm in endpoint.arms if arm.is_live and arm.weight > 0]
        for first in live or (None,):
            if first is None or first.serves_openai:
                yield _with_fallbacks(settings, endpoint, first)


def _with_fallbacks(
    settings: EnvoySettings, endpoint: EndpointRoute, arm: RevisionTarget | None
) -> Resource:
    """Return the cluster that sends a request to `arm`, and its retries to the fallbacks in order.

    A cluster without a healthy server is skipped; the next one then has two attempts. Envoy runs
    the filters of this cluster, not those of the chosen one, whose name is in the metadata of its
    servers.
    """
    own = () if arm is None else (FallbackTarget(endpoint=endpoint.name, arm=arm),)
    targets: dict[str, RenameTarget] = {}
    keys: list[Resource] = []
    for target in (*own, *endpoint.fallbacks):
        renamed, upstream = RenameTarget(endpoint=target.endpoint), target.arm.upstream
        if upstream is not None:
            renamed = rename_target(target.endpoint, upstream)
            if upstream.api_key_file:
                renamed = replace(renamed, key=f"{KEY_HEADER}-{len(keys)}")
                keys.append(api_key_filter(upstream, settings.run_dir, header=renamed.key))
        targets[openai_cluster(target.endpoint, target.arm)] = renamed
    first = next(iter(targets)) if own else ""
    name = fallback_cluster(endpoint.name, "" if arm is None else arm.key)
    clusters: Json = [{"name": cluster} for cluster in targets]
    marked: Resource = {"append": set_header(TARGET_HEADER, UPSTREAM_NAME)}
    filters: Json = [
        typed("headrace.target", _MUTATION, {"mutations": {"request_mutations": [marked]}}),
        *keys,
        *rename_filters(fallback_source(targets, first)),
    ]
    return {
        "name": name,
        "alt_stat_name": stat_name(name),
        "connect_timeout": seconds(_CONNECT_TIMEOUT_S),
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": typed("envoy.clusters.composite", _COMPOSITE, {"clusters": clusters}),
        # The script changes the whole body.
        "per_connection_buffer_limit_bytes": settings.max_body_bytes,
        # Limits are those of the chosen cluster. An outage of the first sends all to the others.
        "circuit_breakers": {"thresholds": [{"max_retries": _MAX_REQUESTS}]},
        **http_options("http", http_filters=filters),
    }


def shared_clusters(settings: EnvoySettings, replicas: Sequence[str]) -> Iterator[Resource]:
    """Yield clusters for server-level requests; `replicas` are those of all endpoints."""
    if replicas:
        yield _cluster(settings, REPLICAS, replicas)
    if settings.control_address is not None:
        yield _cluster(settings, CONTROL, (settings.control_address,))
    if settings.limits_address is not None:
        yield _service_cluster(address_of(settings.limits_address))
    elif settings.limits_target is not None:
        yield _secured_service(settings, settings.limits_target)
    if settings.tracing is not None:
        yield collector_cluster(settings, settings.tracing)


def shadow_cluster() -> Resource:
    """Return the cluster of the listener of copies.

    It has no limit: a copy beyond those of its version's cluster counts as failed there.
    """
    return {
        "name": SHADOW,
        "type": "STATIC",
        "connect_timeout": seconds(_SERVICE_CONNECT_TIMEOUT_S),
        "circuit_breakers": circuit_breakers(_MAX_REQUESTS),
        **load_assignment(SHADOW, {"envoy_internal_address": {"server_listener_name": SHADOW}}),
        **http_options("http"),
    }


def _secured_service(settings: EnvoySettings, target: LimitsTarget) -> Resource:
    """Return the cluster of a service on another host, verified by name and by mutual TLS."""
    found_by: Resource = {"type": "STRICT_DNS", "respect_dns_ttl": True, "dns_lookup_family": "ALL"}
    socket = upstream_socket(
        LIMITS_TLS,
        name=target.host,
        is_ip=is_ip(target.host),
        protocol="h2",
        authorities=None,
        run_dir=settings.run_dir,
    )
    return {
        **_service_cluster(socket_address(target.host, target.port)),
        **({} if is_ip(target.host) else found_by),
        "connect_timeout": seconds(_CONNECT_TIMEOUT_S),
        "transport_socket": socket,
    }


def _service_cluster(address: Resource) -> Resource:
    """Return the rate limit service's gRPC cluster, with a short timeout: requests wait for it."""
    return {
        "name": LIMITS,
        "type": "STATIC",
        "connect_timeout": seconds(_SERVICE_CONNECT_TIMEOUT_S),
        **load_assignment(LIMITS, address),
        **http_options("http2"),
    }


def all_replicas(endpoints: Sequence[EndpointRoute]) -> tuple[str, ...]:
    """Return every ready replica's address once."""
    return tuple(dict.fromkeys(a for e in endpoints for arm in e.arms for a in arm.replicas))


def _cluster(
    settings: EnvoySettings,
    name: str,
    addresses: Sequence[str],
    *,
    is_named: bool = False,
    is_llama: bool = False,
) -> Resource:
    named = upstream_metadata(name) if is_named else {}
    # llama.cpp closes a kept connection without notice after 100 requests or 5 s, and holds a
    # thread for each: requests sent into one that closes are lost, and others wait for a thread.
    once: Resource = {"max_requests_per_connection": 1} if is_llama else {}
    count = len(addresses)
    is_elsewhere = any(_is_remote(address) for address in addresses)
    return {
        "name": name,
        "alt_stat_name": stat_name(name),
        "type": "STATIC",
        "connect_timeout": seconds(_CONNECT_TIMEOUT_S),
        **(balance_by_prefix(count) if is_llama else BY_LOAD),
        **load_assignment(name, *map(address_of, addresses), metadata=named),
        "outlier_detection": outlier_detection(-(-100 * (count - 1) // count)),
        **(reach_checks() if is_elsewhere else {}),
        "circuit_breakers": circuit_breakers(
            min(settings.max_requests_per_replica * count, 2**31 - 1)
        ),
        **http_options(
            "http",
            common_http_protocol_options={"idle_timeout": seconds(_UPSTREAM_IDLE_S), **once},
        ),
    }


def _openai_address(replica: str) -> str:
    """Return the address of OpenAI's API of the replica with this first address."""
    if isinstance(parse_address(replica), Path):
        return f"{replica}{OPENAI_SUFFIX}"
    return f"{replica.rpartition(':')[0]}:{OPENAI_PORT}"


def _is_remote(address: str) -> bool:
    """Whether the address may be on another host: neither a Unix socket nor loopback."""
    parsed = parse_address(address)
    return isinstance(parsed, tuple) and not ipaddress.ip_address(parsed[0]).is_loopback
