"""What Envoy is started with: the admin socket, its own limits, and where it finds the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.gateway.resources import Json, Resource, typed
from headrace.gateway.settings import GatewaySettings

_ADMIN_MODE: Final = 0o600
_ADMIN_PATHS: Final = (
    "/ready",
    "/server_info",
    "/clusters",
    "/healthcheck/fail",
    "/drain_listeners",
    "/reopen_logs",
)


def bootstrap(settings: GatewaySettings) -> Resource:
    """A configuration whose listeners, routes and clusters come from files in `run_dir`."""
    return {
        **_common(settings),
        "dynamic_resources": {
            "lds_config": _file(settings.run_dir / "lds.json"),
            "cds_config": _file(settings.run_dir / "cds.json"),
        },
    }


def static_bootstrap(
    settings: GatewaySettings, listeners: Sequence[Resource], clusters: Sequence[Resource]
) -> Resource:
    """The same with everything inline: what `envoy --mode validate` can check as a whole."""
    inline: Json = {"listeners": listeners, "clusters": clusters}
    return {**_common(settings), "static_resources": inline}


def _common(settings: GatewaySettings) -> Resource:
    return {
        "node": {"id": "headrace", "cluster": "headrace"},
        "admin": {
            "address": {"pipe": {"path": str(settings.admin_socket), "mode": _ADMIN_MODE}},
            "allow_paths": [{"exact": path} for path in _ADMIN_PATHS] + [{"prefix": "/stats"}],
            "ignore_global_conn_limit": True,
        },
        "stats_flush_on_admin": True,
        "overload_manager": {
            "resource_monitors": [
                typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "envoy.extensions.resource_monitors.downstream_connections.v3"
                    ".DownstreamConnectionsConfig",
                    {"max_active_downstream_connections": settings.max_connections},
                )
            ]
        },
    }


def _file(path: Path) -> Resource:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}
