"""Bootstrap configuration of Envoy: admin socket, resource limits and configuration sources."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.gateway.resources import Json, Resource, any_of, seconds, typed
from headrace.gateway.settings import EnvoySettings
from headrace.gateway.tracing import tracing_runtime

_HEAP: Final = "envoy.resource_monitors.fixed_heap"
_CONNECTIONS: Final = "envoy.resource_monitors.global_downstream_max_connections"
_REFRESH_S: Final = 0.1
_SHORTEST_IDLE_S: Final = 2.0
_SMALLEST_CUT: Final = 1 << 20
"""Minimum size in bytes of a request that is reset for its size."""
_ADMIN_MODE: Final = 0o600
_ADMIN_PATHS: Final = (
    "/ready",
    "/server_info",
    "/clusters",
    "/healthcheck/fail",
    "/drain_listeners",
    "/reopen_logs",
)


def bootstrap(settings: EnvoySettings) -> Resource:
    """Return a configuration whose listeners, routes and clusters come from files in `run_dir`."""
    return {
        **_common(settings),
        "dynamic_resources": {
            "lds_config": _file(settings.run_dir / "lds.json"),
            "cds_config": _file(settings.run_dir / "cds.json"),
        },
    }


def static_bootstrap(
    settings: EnvoySettings, listeners: Sequence[Resource], clusters: Sequence[Resource]
) -> Resource:
    """Return the same with everything inline, for `envoy --mode validate`."""
    inline: Json = {"listeners": listeners, "clusters": clusters}
    return {**_common(settings), "static_resources": inline}


def _common(settings: EnvoySettings) -> Resource:
    return {
        "node": {"id": "headrace", "cluster": "headrace"},
        "admin": {
            "address": {"pipe": {"path": str(settings.admin_socket), "mode": _ADMIN_MODE}},
            "allow_paths": [{"exact": path} for path in _ADMIN_PATHS] + [{"prefix": "/stats"}],
            "ignore_global_conn_limit": True,
        },
        "stats_flush_on_admin": True,
        "bootstrap_extensions": [
            typed(
                "envoy.bootstrap.internal_listener",
                "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            )
        ],
        **tracing_runtime(settings.tracing),
        "overload_manager": _overload_manager(settings),
    }


def _overload_manager(settings: EnvoySettings) -> Resource:
    """Return Envoy's actions when memory or connections run out, most expensive load first.

    Large HTTP/2 requests are reset from the largest on before other requests are refused; idle
    connections are closed ever sooner before new ones are refused.
    """
    return {
        "refresh_interval": seconds(_REFRESH_S),
        "resource_monitors": [
            typed(
                _HEAP,
                "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                {"max_heap_size_bytes": settings.connections.max_memory_bytes},
            ),
            typed(
                _CONNECTIONS,
                "envoy.extensions.resource_monitors.downstream_connections.v3"
                ".DownstreamConnectionsConfig",
                {"max_active_downstream_connections": settings.connections.max},
            ),
        ],
        "buffer_factory_config": {
            "minimum_account_to_track_power_of_two": _SMALLEST_CUT.bit_length() - 1
        },
        "actions": [
            _action("shrink_heap", _HEAP, _from(0.75)),
            {
                **_action("reduce_timeouts", _CONNECTIONS, _between(0.5, 0.9)),
                "typed_config": any_of(
                    "envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
                    {
                        "timer_scale_factors": [
                            {
                                "timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE",
                                "min_timeout": seconds(_SHORTEST_IDLE_S),
                            }
                        ]
                    },
                ),
            },
            _action("reset_high_memory_stream", _HEAP, _between(0.60, 0.90)),
            _action("stop_accepting_requests", _HEAP, _from(0.97)),
        ],
    }


def _action(name: str, monitor: str, trigger: Resource) -> Resource:
    return {
        "name": f"envoy.overload_actions.{name}",
        "triggers": [{"name": monitor, **trigger}],
    }


def _from(share: float) -> Resource:
    """Return a trigger that acts fully above this share of the limit."""
    return {"threshold": {"value": share}}


def _between(low: float, high: float) -> Resource:
    """Return a trigger that acts increasingly between these shares of the limit."""
    return {"scaled": {"scaling_threshold": low, "saturation_threshold": high}}


def _file(path: Path) -> Resource:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}
