"""Envoy verifies tokens for its own script, by a listener of its own that nobody else reaches.

In the way of every request the filter for tokens would cost more than all else that is asked, also
of callers with keys. So the script asks this listener once about a token, and again now and then.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.core.headers import ISSUER_HEADER
from headrace.gateway.extensions import JWT, Extension
from headrace.gateway.resources import HTTP_OPTIONS, Json, Resource, any_of, set_header, typed
from headrace.gateway.scripts_auth import VERIFY
from headrace.gateway.settings import GatewaySettings

_MANAGER: Final = (
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_PRIVATE_MODE: Final = 0o600
_CONNECT_TIMEOUT: Final = "1s"


def verify_listener(
    settings: GatewaySettings, configs: Mapping[Extension, Resource] | None
) -> Resource:
    """Answers 200 and whose token it was, or 401.

    Args:
        configs: What extensions are configured with; None has Envoy read it from their files.
    """
    verifier = (
        JWT.discovered(settings.run_dir)
        if configs is None
        else typed(JWT.filter_name, JWT.type_name, configs[JWT])
    )
    route: Resource = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "response_headers_to_add": [set_header(ISSUER_HEADER, f"%REQ({ISSUER_HEADER})%")],
    }
    filters: Json = [
        verifier,
        typed("headrace.router", "envoy.extensions.filters.http.router.v3.Router"),
    ]
    manager: Resource = {
        "stat_prefix": "headrace_verify",
        "route_config": {
            "name": VERIFY,
            "virtual_hosts": [{"name": VERIFY, "domains": ["*"], "routes": [route]}],
        },
        "http_filters": filters,
    }
    chain: Resource = {
        "filters": [typed("envoy.filters.network.http_connection_manager", _MANAGER, manager)]
    }
    return {
        "name": VERIFY,
        "address": _pipe(settings.verify_socket, mode=_PRIVATE_MODE),
        "filter_chains": [chain],
        "ignore_global_conn_limit": True,  # however many callers there are, they can be told apart
    }


def verify_cluster(settings: GatewaySettings) -> Resource:
    """How the script reaches it."""
    endpoint: Resource = {"endpoint": {"address": _pipe(settings.verify_socket)}}
    options = any_of(HTTP_OPTIONS, {"explicit_http_config": {"http2_protocol_options": {}}})
    return {
        "name": VERIFY,
        "type": "STATIC",
        "connect_timeout": _CONNECT_TIMEOUT,
        "load_assignment": {
            "cluster_name": VERIFY,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
        "typed_extension_protocol_options": {HTTP_OPTIONS: options},
    }


def _pipe(path: Path, **more: Json) -> Resource:
    return {"pipe": {"path": str(path), **more}}
