"""What Envoy does with a connection: the same on every port, for HTTP/1.1, HTTP/2 and gRPC."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.gateway.access_log import access_log
from headrace.gateway.filters import early_mutations, http_filters
from headrace.gateway.replies import local_reply_config
from headrace.gateway.resources import Resource, any_of, seconds, typed
from headrace.gateway.routes import ROUTE_CONFIG
from headrace.gateway.settings import GatewaySettings
from headrace.gateway.statistics import arm_loggers

STAT_PREFIX: Final = "headrace"
_FRAMING_BYTES: Final = 64 << 10
_SMALLEST_WINDOW_BYTES: Final = 1 << 20


def build_listeners(settings: GatewaySettings, routes: Resource) -> Sequence[Resource]:
    """One listener per port. `routes` says where the route table comes from: a file or inline."""
    return [_listener(settings, port, routes) for port in settings.ports]


def routes_from_file(path: str) -> Resource:
    """The route table is read from `path` and again whenever that file is replaced."""
    source: Resource = {"path_config_source": {"path": path}, "resource_api_version": "V3"}
    return {"rds": {"route_config_name": ROUTE_CONFIG, "config_source": source}}


def _listener(settings: GatewaySettings, port: int, routes: Resource) -> Resource:
    return {
        "name": f"port-{port}",
        "address": {"socket_address": {"address": settings.host, "port_value": port}},
        # With port reuse a second gateway would bind the same port and take half of the requests.
        "enable_reuse_port": False,
        "filter_chains": [
            {
                "filters": [
                    typed(
                        "envoy.filters.network.http_connection_manager",
                        "envoy.extensions.filters.network.http_connection_manager.v3"
                        ".HttpConnectionManager",
                        _connection_manager(settings, routes),
                    )
                ]
            }
        ],
    }


def _connection_manager(settings: GatewaySettings, routes: Resource) -> Resource:
    to_file = [access_log(settings.run_dir / "access.log")] if settings.access_log else []
    return {
        "stat_prefix": STAT_PREFIX,
        "codec_type": "AUTO",
        **routes,
        **_path_rules(),
        **_request_id(),
        "early_header_mutation_extensions": early_mutations(),
        "http_filters": http_filters(settings, _descriptor_set(settings)),
        "local_reply_config": local_reply_config(),
        "access_log": [*to_file, *arm_loggers()],
        "server_name": "headrace",
        "use_remote_address": True,
        # A caller on this machine may no more set Envoy's own headers than one from outside.
        "internal_address_config": {},
        "request_timeout": seconds(settings.request_timeout_s),
        "request_headers_timeout": seconds(settings.headers_timeout_s),
        "stream_idle_timeout": seconds(settings.idle_timeout_s),
        "common_http_protocol_options": {
            "idle_timeout": seconds(settings.idle_timeout_s),
            # `x_model` and `x-model` are one header to a Python server, but two to Envoy.
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "http2_protocol_options": _http2(settings),
    }


def _path_rules() -> Resource:
    """`/v2/health/../models/m` is judged as what it means, or refused."""
    return {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    }


def _request_id() -> Resource:
    """A caller's `x-request-id` is kept, byte for byte; others get one."""
    return {
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": any_of(
                "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                {"pack_trace_reason": False},
            )
        },
    }


def _http2(settings: GatewaySettings) -> Resource:
    """Windows as large as the largest message.

    The model's name is read from the first gRPC message, which is held whole until then, and the
    stream's window is what bounds it: a smaller one would refuse what the body limit allows.
    """
    window = max(settings.max_body_bytes + _FRAMING_BYTES, _SMALLEST_WINDOW_BYTES)
    return {
        "max_concurrent_streams": settings.max_concurrent_streams,
        "initial_stream_window_size": window,
        "initial_connection_window_size": window,
    }


def _descriptor_set(settings: GatewaySettings) -> Path:
    if settings.descriptor_set is not None:
        return settings.descriptor_set
    from headrace.protocol import DESCRIPTOR_SET_PATH  # noqa: PLC0415  # loads the codecs

    return DESCRIPTOR_SET_PATH
