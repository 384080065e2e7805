"""External upstreams: names, TLS, health checks, ejection and limits.

Envoy resolves the name again according to its DNS TTL, and sends to all its addresses.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final, assert_never
from urllib.parse import urlsplit

from headrace.core import FailedPreconditionError
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec, UpstreamTlsSpec
from headrace.gateway.resources import (
    Json,
    Resource,
    http_options,
    load_assignment,
    seconds,
    socket_address,
    typed,
    upstream_metadata,
)
from headrace.gateway.scripts import RenameTarget, rename_source
from headrace.gateway.settings import EnvoySettings, UpstreamUrl, is_ip, parse_url
from headrace.gateway.tls import api_key_filter, upstream_socket

_FAILURES_BEFORE_EJECTION: Final = 3
_REACH_CHECK: Final = "1s"
_FAILURES_TO_UNREACHABLE: Final = 2


_NO_PANIC: Final[Resource] = {"healthy_panic_threshold": {"value": 0}}
"""Without this, Envoy continues to send to ejected servers once half of them are ejected."""
BY_LOAD: Final[Resource] = {"lb_policy": "LEAST_REQUEST", "common_lb_config": _NO_PANIC}
"""Load balancing of servers that are alike: two random ones are compared."""
_HASH_BALANCE_PERCENT: Final = 125
_POINTS_PER_SERVER: Final = 256
"""Points of a server on the hash ring: shares of the prompts differ by about a sixteenth."""


def balance_by_prefix(servers: int = 4) -> Resource:
    """Return the load balancing of servers that cache prompts.

    Requests with the same hash go to the same server while it has at most 1.25 times the mean
    number of requests, and then to a second one, and so on. Those without a hash go to a random
    server within this bound. See Mirrokni et al., "Consistent Hashing with Bounded Loads", 2018.

    Args:
        servers: How many there are. If one leaves, the others keep their hashes, which another
            number would shift a little.
    """
    bound: Resource = {"hash_balance_factor": _HASH_BALANCE_PERCENT}
    return {
        "lb_policy": "RING_HASH",
        "ring_hash_lb_config": {"minimum_ring_size": servers * _POINTS_PER_SERVER},
        "common_lb_config": {**_NO_PANIC, "consistent_hashing_lb_config": bound},
    }


def outlier_detection(most_ejected_percent: int) -> Resource:
    """Return settings that eject an unreachable server, never one whose responses are errors.

    A model that fails on bad rows responds 500 from a healthy replica. The last server is never
    ejected: trying it is better than refusing every request.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": _FAILURES_BEFORE_EJECTION,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": "0.500s",
        "base_ejection_time": "1s",
        "max_ejection_time": "10s",
        "max_ejection_percent": min(most_ejected_percent, _MAX_EJECTED_PERCENT),
    }


def reach_checks() -> Resource:
    """Return checks that detect an unreachable host within three seconds and fail its requests.

    A connection to a host that lost its power or its network reports no error. Only the connection
    is checked, which the kernel answers: a busy replica responds late to requests, and its ejection
    would cause an outage.
    """
    return {
        "health_checks": [
            {
                "timeout": _REACH_CHECK,
                "interval": _REACH_CHECK,
                "no_traffic_interval": _REACH_CHECK,  # otherwise once a minute until the first call
                "unhealthy_threshold": _FAILURES_TO_UNREACHABLE,
                "healthy_threshold": 1,
                "tcp_health_check": {},
            }
        ],
        "close_connections_on_host_health_failure": True,
        # Otherwise Envoy continues to send to an ejected replica until it is removed.
        "ignore_health_on_host_removal": True,
    }


def circuit_breakers(limit: int) -> Resource:
    """Return a limit of `limit` concurrent requests.

    For replicas it is far above their own queue, which refuses first and reports for how long.
    """
    return {
        "thresholds": [
            {
                "max_connections": limit,
                "max_pending_requests": limit,
                "max_requests": limit,
                "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 32},
            }
        ]
    }


_CONNECT_TIMEOUT_S: Final = 5.0
_IDLE_S: Final = {"http": 4.0, "http2": 60.0}
"""Seconds after which an idle connection is closed, by version of HTTP. uvicorn and Node close
theirs after 5 s, and a request that meets that close gets 503."""
_HEALTH_TIMEOUT_S: Final = 5.0
_FAILURES_TO_UNHEALTHY: Final = 2
_ANSWERS_WITHOUT_KEY: Final = (200, 401, 403)
"""Statuses of a healthy server of OpenAI's API to a health check."""
_MAX_EJECTED_PERCENT: Final = 99
_LUA: Final = "envoy.extensions.filters.http.lua.v3.Lua"
_CODEC: Final = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)


def upstream_cluster(
    settings: EnvoySettings, name: str, endpoint: str, upstream: UpstreamSpec, servers_file: str
) -> Resource:
    """Return the cluster `name` of one upstream.

    Args:
        servers_file: As of `RevisionTarget`.

    Raises:
        FailedPreconditionError: The upstream uses TLS, and this host has no CA certificates.
    """
    server = parse_url(upstream.url)
    discovery: Resource = (
        {"type": "STATIC"}
        if server.is_ip
        else {"type": "STRICT_DNS", "respect_dns_ttl": True, "dns_lookup_family": "ALL"}
    )
    health = _health_check(endpoint, server, upstream)
    is_openai = upstream.protocol is UpstreamProtocol.OPENAI
    servers = load_assignment(
        name,
        socket_address(server.host, server.port),
        metadata=upstream_metadata(name) if is_openai else {},
    )
    if servers_file:
        source: Resource = {"path_config_source": {"path": str(settings.run_dir / servers_file)}}
        discovery = {"type": "EDS", "eds_cluster_config": {"eds_config": source}}
        servers = {}
    version = "http2" if upstream.protocol is UpstreamProtocol.GRPC else "http"
    return {
        "name": name,
        "alt_stat_name": name.replace(".", "+"),
        **discovery,
        "connect_timeout": seconds(_CONNECT_TIMEOUT_S),
        **servers,
        "outlier_detection": outlier_detection(_MAX_EJECTED_PERCENT),
        "circuit_breakers": circuit_breakers(upstream.max_requests),
        **(
            {
                # The script of the connection changes the whole body.
                "per_connection_buffer_limit_bytes": settings.max_body_bytes,
                **balance_by_prefix(),
            }
            if is_openai
            else BY_LOAD
        ),
        "health_checks": [] if health is None else [health],
        **_tls(
            settings,
            server,
            upstream.tls or UpstreamTlsSpec(),
            protocol="h2" if version == "http2" else "http/1.1",
        ),
        **http_options(
            version,
            common_http_protocol_options={"idle_timeout": seconds(_IDLE_S[version])},
            http_filters=rename_filters(
                rename_source(rename_target(endpoint, upstream)),
                [api_key_filter(upstream, settings.run_dir)] if upstream.api_key_file else [],
            ),
        ),
    }


def authorities(settings: EnvoySettings, *, bundles: Sequence[str] = _BUNDLES) -> Path:
    """Return the file of CA certificates that verify upstreams.

    Raises:
        FailedPreconditionError: No CA certificates exist.
    """
    if settings.ca_file is not None:
        return settings.ca_file
    system_bundle = ssl.get_default_verify_paths().cafile
    for path in map(Path, (*((system_bundle,) if system_bundle else ()), *bundles)):
        if path.is_file():
            return path
    raise FailedPreconditionError(
        "no CA certificates on this machine to verify upstreams: install ca-certificates, or set "
        "SSL_CERT_FILE to a PEM file"
    )


def is_checked(upstream: UpstreamSpec) -> bool:
    """Whether an upstream has active health checks."""
    return _probe("m", parse_url(upstream.url), upstream) is not None


def rename_target(endpoint: str, upstream: UpstreamSpec) -> RenameTarget:
    """Return the names by which an upstream knows the model of an endpoint."""
    server = parse_url(upstream.url)
    return RenameTarget(
        endpoint=endpoint,
        model=upstream.model,
        prefix=server.prefix,
        authority=server.authority,
    )


def rename_filters(script: str, more: Sequence[Resource] = ()) -> Sequence[Resource]:
    """Return the filters of a cluster that run `script`, then `more`, and send the request."""
    return [
        typed("headrace.rename", _LUA, {"default_source_code": {"inline_string": script}}),
        *more,
        typed("headrace.codec", _CODEC),
    ]


def _tls(
    settings: EnvoySettings, server: UpstreamUrl, tls: UpstreamTlsSpec, *, protocol: str
) -> Resource:
    """Return TLS that verifies the host name of the URL, or the name configured beside it."""
    if not server.is_tls:
        return {}
    name = tls.server_name or server.host
    socket = upstream_socket(
        tls,
        name=name,
        is_ip=is_ip(name),
        protocol=protocol,
        authorities=None if tls.ca_file else authorities(settings),
        run_dir=settings.run_dir,
    )
    return {"transport_socket": socket}


def _health_check(endpoint: str, server: UpstreamUrl, upstream: UpstreamSpec) -> Resource | None:
    """Return the health check of every `health_interval_s`; None without one."""
    check = _probe(endpoint, server, upstream)
    if check is None:
        return None
    interval = seconds(upstream.health_interval_s)
    return {
        "timeout": seconds(min(max(upstream.health_interval_s, 1.0), _HEALTH_TIMEOUT_S)),
        "interval": interval,
        "no_traffic_interval": interval,  # else a minute until the first call
        "no_traffic_healthy_interval": interval,
        "unhealthy_threshold": _FAILURES_TO_UNHEALTHY,
        "healthy_threshold": 1,
        **check,
    }


def _probe(endpoint: str, server: UpstreamUrl, upstream: UpstreamSpec) -> Resource | None:
    if upstream.health_path is None:
        return None
    if upstream.protocol is UpstreamProtocol.GRPC:
        return {"grpc_health_check": {"authority": server.authority}}
    path = upstream.health_path or _own_health_path(upstream.protocol, upstream.model or endpoint)
    if path is None:
        return None
    http: dict[str, Json] = {"path": server.prefix + path, "host": server.authority}
    if upstream.protocol is UpstreamProtocol.OPENAI:
        # A check sends no key: the request that a server refuses for that shows that it answers.
        http["expected_statuses"] = [{"start": s, "end": s + 1} for s in _ANSWERS_WITHOUT_KEY]
    return {"http_health_check": http}


def _own_health_path(protocol: UpstreamProtocol, model: str) -> str | None:
    match protocol:
        case UpstreamProtocol.V2:
            return "/v2/health/ready"
        case UpstreamProtocol.V1:
            return f"/v1/models/{model}"
        case UpstreamProtocol.TORCHSERVE:
            return "/ping"
        case UpstreamProtocol.OPENAI:
            return "/v1/models"
        case UpstreamProtocol.HTTP | UpstreamProtocol.GRPC:
            return None
        case _:
            assert_never(protocol)


def url_cluster(
    settings: EnvoySettings, name: str, url: str, *, connect_timeout_s: float
) -> Resource:
    """Return the cluster `name` of the host of an HTTP URL, which TLS verifies by its name."""
    parts = urlsplit(url)
    server = parse_url(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
    return {
        "name": name,
        "alt_stat_name": name.replace(".", "+"),
        "type": "STRICT_DNS",
        "dns_lookup_family": "ALL",
        "connect_timeout": seconds(connect_timeout_s),
        **load_assignment(name, socket_address(server.host, server.port)),
        **_tls(settings, server, UpstreamTlsSpec(), protocol="http/1.1"),
    }
