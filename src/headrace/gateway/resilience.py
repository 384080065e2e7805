"""When does Envoy stop sending to a server? Ejection and bounds, the same for all clusters."""

from typing import Final

from headrace.gateway.resources import Resource

_FAILURES_BEFORE_EJECTION: Final = 3
_MOST_EJECTED_PERCENT: Final = 99
_REACH_CHECK: Final = "1s"
_FAILURES_TO_UNREACHABLE: Final = 2


def outlier_detection(most_ejected_percent: int) -> Resource:
    """Eject a server that cannot be reached, never one whose answers are errors.

    A model that fails on bad rows answers 500 from a healthy replica. The last server is never
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
        "max_ejection_percent": min(most_ejected_percent, _MOST_EJECTED_PERCENT),
    }


def reach_checks() -> Resource:
    """Notice within three seconds that another host is gone, and let go of what waits for it.

    Nobody says so on a connection to a host that lost its power or its network. Only the connection
    is tried, which the kernel answers: a replica that is busy answers requests late, and taking it
    out for that would make an outage of it.
    """
    return {
        "health_checks": [
            {
                "timeout": _REACH_CHECK,
                "interval": _REACH_CHECK,
                "no_traffic_interval": _REACH_CHECK,  # else a minute until somebody calls
                "unhealthy_threshold": _FAILURES_TO_UNREACHABLE,
                "healthy_threshold": 1,
                "tcp_health_check": {},
            }
        ],
        "close_connections_on_host_health_failure": True,
        # Else Envoy goes on sending to a replica that was taken out, until it is gone.
        "ignore_health_on_host_removal": True,
    }


def circuit_breakers(limit: int) -> Resource:
    """At most `limit` requests at once.

    For replicas it is far above their own queue, which refuses first and says for how long.
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
