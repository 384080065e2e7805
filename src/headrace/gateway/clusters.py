"""How Envoy reaches the replicas of each revision: balancing, ejection, limits."""

from collections.abc import Iterator, Sequence
from typing import Final

from headrace.gateway.resources import Resource, address_of, any_of, seconds
from headrace.gateway.settings import EndpointRoute, GatewaySettings, RevisionTarget

REPLICAS: Final = "replicas"
"""The cluster of all ready replicas, for what no endpoint is named for."""
CONTROL: Final = "control"
"""The cluster of the control plane's own port."""

_CONNECT_TIMEOUT_S: Final = 1.0
# Shorter than a replica's idle timeout (300 s), so that it is Envoy that closes: a request sent
# into a connection that the replica is just closing would be lost.
_UPSTREAM_IDLE_S: Final = 60.0
_FAILURES_BEFORE_EJECTION: Final = 3
_MOST_EJECTED_PERCENT: Final = 99


def cluster_name(endpoint: str, version: str) -> str:
    """The cluster of one revision; no endpoint's name contains a tilde, so it is unique."""
    return f"{endpoint}~{version}"


def stat_name(cluster: str) -> str:
    """`cluster` as Envoy's metrics name it: a dot would split the metric's name."""
    return cluster.replace(".", "+")


def revision_of(stat: str) -> tuple[str, str] | None:
    """Endpoint and version of a cluster that Envoy's metrics name; None for other clusters."""
    endpoint, tilde, version = stat.rpartition("~")
    return (endpoint.replace("+", "."), version) if tilde else None


def build_clusters(
    settings: GatewaySettings, endpoints: Sequence[EndpointRoute]
) -> Iterator[Resource]:
    """One cluster per revision that has replicas, and those for server-level requests."""
    for endpoint in endpoints:
        for revision in endpoint.revisions:
            if revision.replicas:
                name = cluster_name(endpoint.name, revision.version)
                yield _cluster(settings, name, revision.replicas)
    if replicas := all_replicas(endpoints):
        yield _cluster(settings, REPLICAS, replicas)
    if settings.control_address is not None:
        yield _cluster(settings, CONTROL, (settings.control_address,))


def all_replicas(endpoints: Sequence[EndpointRoute]) -> tuple[str, ...]:
    """Every ready replica's address, each once."""
    return tuple(dict.fromkeys(address for route in endpoints for address in _addresses(route)))


def live_split(endpoint: EndpointRoute) -> tuple[RevisionTarget, ...]:
    """The revisions that take unversioned requests.

    A revision without a ready replica gives its share to the others: an answer of another
    revision is better than none.
    """
    return tuple(r for r in endpoint.revisions if r.weight > 0 and r.replicas)


def _addresses(endpoint: EndpointRoute) -> Iterator[str]:
    for revision in endpoint.revisions:
        yield from revision.replicas


def _cluster(settings: GatewaySettings, name: str, addresses: Sequence[str]) -> Resource:
    return {
        "name": name,
        "alt_stat_name": stat_name(name),
        "type": "STATIC",
        "connect_timeout": seconds(_CONNECT_TIMEOUT_S),
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address_of(a)}} for a in addresses]}
            ],
        },
        # Without this, Envoy goes on sending to ejected replicas once half of them are out.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "outlier_detection": _outlier_detection(len(addresses)),
        "circuit_breakers": _circuit_breakers(settings, len(addresses)),
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: any_of(
                _HTTP_OPTIONS,
                {
                    "common_http_protocol_options": {"idle_timeout": seconds(_UPSTREAM_IDLE_S)},
                    "explicit_http_config": {"http_protocol_options": {}},
                },
            )
        },
    }


_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def _outlier_detection(replicas: int) -> Resource:
    """Eject a replica that cannot be reached, never one whose answers are errors.

    A model that fails on bad rows answers 500 from a healthy replica. The last replica is never
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
        "max_ejection_percent": min(-(-100 * (replicas - 1) // replicas), _MOST_EJECTED_PERCENT),
    }


def _circuit_breakers(settings: GatewaySettings, replicas: int) -> Resource:
    """Bounds far above a replica's own queue, which refuses first and says for how long."""
    limit = min(settings.max_requests_per_replica * replicas, 2**31 - 1)
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
