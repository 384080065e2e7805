"""What Envoy does with a connection: the same on every port, for HTTP/1.1, HTTP/2 and gRPC."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from headrace.gateway.access_log import access_log
from headrace.gateway.extensions import Extension
from headrace.gateway.filters import early_mutations, http_filters, unguarded
from headrace.gateway.refusals import refusal_loggers
from headrace.gateway.replies import local_reply_config
from headrace.gateway.resources import Resource, any_of, seconds, typed
from headrace.gateway.routes import ROUTE_CONFIG
from headrace.gateway.settings import GatewaySettings
from headrace.gateway.statistics import arm_loggers
from headrace.gateway.tls import downstream_socket
from headrace.gateway.tracing import tracing
from headrace.gateway.verifying import verify_listener

STAT_PREFIX: Final = "headrace"
_MANAGER: Final = (
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_PRIVATE_MODE: Final = 0o600
_HANDSHAKE_TIMEOUT_S: Final = 10.0
_FRAMING_BYTES: Final = 64 << 10
_SMALLEST_WINDOW_BYTES: Final = 1 << 20


def build_listeners(
    settings: GatewaySettings,
    routes: Resource,
    configs: Mapping[Extension, Resource] | None = None,
) -> Sequence[Resource]:
    """The listener for callers, and private ones. `routes`: the route table's file, or the table.

    Args:
        configs: What extensions are configured with; None has Envoy read it from their files.
    """
    filters = http_filters(settings, _descriptor_set(settings), configs)
    manager = _connection_manager(settings, routes, filters, counts_all=settings.counts_all)
    own = _connection_manager(settings, routes, unguarded(filters), counts_all=False)
    return [
        _listener(settings, manager),
        _own(settings, own),
        verify_listener(settings, configs),
    ]


def routes_from_file(path: str) -> Resource:
    """The route table is read from `path` and again whenever that file is replaced."""
    source: Resource = {"path_config_source": {"path": path}, "resource_api_version": "V3"}
    return {"rds": {"route_config_name": ROUTE_CONFIG, "config_source": source}}


def _own(settings: GatewaySettings, manager: Resource) -> Resource:
    """The control plane's own way in, which asks for nothing: its directory is this user's only."""
    pipe: Resource = {"path": str(settings.private_socket), "mode": _PRIVATE_MODE}
    return {
        "name": "own",
        "address": {"pipe": pipe},
        "filter_chains": [{"filters": [_http(manager)]}],
    }


def _listener(settings: GatewaySettings, manager: Resource) -> Resource:
    """One for all ports: each listener would count limits for itself."""
    tls = settings.tls
    secured: Resource = {}
    if tls is not None:
        secured = {
            "transport_socket": downstream_socket(tls, settings.run_dir),
            # Else whoever connects and says nothing keeps the connection for ever.
            "transport_socket_connect_timeout": seconds(_HANDSHAKE_TIMEOUT_S),
        }
    addresses: Sequence[Resource] = [
        {"socket_address": {"address": settings.host, "port_value": port}}
        for port in settings.ports
    ]
    first, *others = addresses
    return {
        "name": "callers",
        "address": first,
        "additional_addresses": [{"address": address} for address in others],
        # With port reuse a second gateway would bind the same port and take half of the requests.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [_http(manager)], **secured}],
    }


def _http(manager: Resource) -> Resource:
    return typed("envoy.filters.network.http_connection_manager", _MANAGER, manager)


def _connection_manager(
    settings: GatewaySettings,
    routes: Resource,
    filters: Sequence[Resource],
    *,
    counts_all: bool,
) -> Resource:
    path = settings.run_dir / "access.log"
    to_file = [access_log(path, settings.request_log)] if settings.access_log else []
    return {
        "stat_prefix": STAT_PREFIX,
        "codec_type": "AUTO",
        **routes,
        **_path_rules(),
        **_request_id(),
        **tracing(settings.tracing),
        "early_header_mutation_extensions": early_mutations(),
        "http_filters": filters,
        "local_reply_config": local_reply_config(),
        "access_log": [*to_file, *arm_loggers(counts_all=counts_all), *refusal_loggers()],
        "server_name": "headrace",
        "use_remote_address": True,
        # Whom a certificate names is said by the handshake alone, never by a header.
        "forward_client_cert_details": "SANITIZE",
        # A caller on this machine may no more set Envoy's own headers than one from outside.
        "internal_address_config": {},
        "request_timeout": seconds(settings.request_timeout_s),
        "request_headers_timeout": seconds(settings.headers_timeout_s),
        "stream_idle_timeout": seconds(settings.idle_timeout_s),
        "common_http_protocol_options": {
            "idle_timeout": seconds(settings.idle_timeout_s),
            # Replicas take `x_model` and `x-model` for two headers, as Envoy does. Where a server
            # may take them for one, routes refuse (`CHECKING_NAMES`): here HTTP/2 streams would be
            # reset without a word.
            "headers_with_underscores_action": "ALLOW",
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
                # By chance, not by the id: callers choose that.
                {"pack_trace_reason": False, "use_request_id_for_trace_sampling": False},
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
