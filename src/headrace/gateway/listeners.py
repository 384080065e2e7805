"""Listeners of Envoy, and the bodies and counts of Envoy's own errors.

The first mapper whose filter matches formats the reply; HTTP callers get `{"error": "..."}` as from
a replica, gRPC callers the text in `grpc-message`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.gateway.access_log import access_log, arms_log
from headrace.gateway.callers import Extension, verify_listener
from headrace.gateway.clusters import CONTROL, REPLICAS, SHADOW
from headrace.gateway.filters import early_mutations, http_filters, without_auth_filters
from headrace.gateway.resources import (
    IS_GRPC,
    Json,
    Resource,
    any_of,
    connection_manager,
    either,
    every,
    expression,
    header_matches,
    seconds,
    set_header,
    stats_logger,
    status_is,
)
from headrace.gateway.routes import BULK_PATHS, OPENAI_PATHS, ROUTE_CONFIG
from headrace.gateway.settings import EnvoySettings
from headrace.gateway.statistics import arm_loggers, token_loggers
from headrace.gateway.tls import downstream_socket
from headrace.gateway.tracing import tracing

_BODY: Final = "%LOCAL_REPLY_BODY%"
_RETRY_AFTER_S: Final = 1
_FIRST_ERROR: Final = 400
_FIRST_SERVER_ERROR: Final = 500
_TOO_MANY: Final = "too many requests: a limit per second is reached"
_POSTED: Final = "(/infer|:[a-z]+|/index|/load|/unload)([?].*)?$"
"""Paths of V1, V2 and the repository that accept POST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """Kind of local reply: its status, its text, and replacements of Envoy's own codes."""

    status: int
    when: Resource | None = None
    """Filter; None for all replies with this status."""
    replaces_status: bool = False
    text: str = _BODY
    grpc_text: str = _BODY
    grpc_status: int | None = None
    retry_after: bool = False
    allow: str = ""


def local_reply_config() -> Resource:
    """Return the mappers of every reply that does not come from a replica."""
    return {"mappers": [mapper for case in _CASES for mapper in _mappers(case)]}


def _mappers(case: _Case) -> Iterator[Resource]:
    """Yield a mapper for gRPC callers, one for callers of OpenAI's API and one for all others."""
    when = case.when or status_is("EQ", case.status)
    # Unless the refusing component set it.
    retry = (
        [set_header("retry-after", str(_RETRY_AFTER_S), replaces=False)] if case.retry_after else []
    )
    grpc = [] if case.grpc_status is None else [set_header("grpc-status", str(case.grpc_status))]
    status: Resource = {"status_code": case.status} if case.replaces_status else {}
    yield {
        "filter": every(IS_GRPC, when),
        "body_format_override": {"text_format_source": {"inline_string": case.grpc_text}},
        "headers_to_add": [*retry, *grpc],
        **status,
    }
    kind = "server_error" if case.status >= _FIRST_SERVER_ERROR else "invalid_request_error"
    openai: Resource = {
        "message": case.text,
        "type": _OPENAI_TYPES.get(case.status, kind),
        "param": None,
        "code": _OPENAI_CODES.get(case.status),
    }
    errors: Sequence[tuple[Resource, Json]] = [(every(_IS_OPENAI, when), openai), (when, case.text)]
    for fits, error in errors:
        yield {
            "filter": fits,
            "body_format_override": {"json_format": {"error": error}},
            "headers_to_add": [*retry, *([set_header("allow", case.allow)] if case.allow else [])],
            **status,
        }


def _details_are(details: str, also: str = "true") -> Resource:
    """Return the condition that a filter responded: at this point Envoy has set no flag yet."""
    return expression(f"response.code_details == '{details}' && {also}")


# Two expressions: Envoy bounds the size of one.
_IS_OPENAI: Final = either(
    *(
        header_matches(":path", string_match={"safe_regex": {"regex": f"({paths})([?].*)?"}})
        for paths in (OPENAI_PATHS, BULK_PATHS)
    )
)
# Other routes, which name no endpoint, lead to any replica or to the control plane.
_OF_ENDPOINT: Final = expression(f"!(xds.cluster_name in ['{REPLICAS}', '{CONTROL}'])")
_TOO_SLOW: Final = (
    "endpoint '%ROUTE_NAME%' did not answer within its `timeout_s`, or the caller's own; ask for "
    "less in one request, or raise `timeout_s` in the spec"
)
_OPENAI_TYPES: Final = {429: "rate_limit_error"}
_OPENAI_CODES: Final = {
    401: "invalid_api_key",
    404: "model_not_found",
    429: "rate_limit_exceeded",
}
_CASES: Final = (
    # A filter that processes the response later sets the time of the next token.
    _Case(
        status=429,
        when=_details_are("local_rate_limited"),
        text=_TOO_MANY,
        grpc_text=_TOO_MANY,
    ),
    # An open circuit breaker is an overload, not an outage.
    _Case(
        status=429,
        when={"response_flag_filter": {"flags": ["UO"]}},
        replaces_status=True,
        grpc_status=8,
        retry_after=True,
    ),
    # Envoy responds to this itself; other unsupported methods reach a replica, which reports the
    # error.
    *(
        _Case(
            status=405,
            when=_details_are("query_missing_content_type", location),
            replaces_status=True,
            text="Method Not Allowed",
            allow=allow,
        )
        for location, allow in (
            (f"request.path.matches('{_POSTED}')", "POST"),
            ("true", "GET, HEAD"),
        )
    ),
    # A script sets the reason.
    _Case(status=400, when=every(status_is("EQ", 400), _details_are("lua_response"))),
    # Envoy refuses a malformed head without a text, but knows the reason.
    _Case(status=400, text="Bad Request: %RESPONSE_CODE_DETAILS%"),
    _Case(status=408, text="the request did not arrive in time", grpc_status=4),
    _Case(status=413, grpc_status=8),
    _Case(status=429, grpc_status=8, retry_after=True),
    _Case(status=503, retry_after=True),
    _Case(
        status=504,
        when=every(status_is("EQ", 504), _OF_ENDPOINT),
        text=_TOO_SLOW,
        grpc_text=_TOO_SLOW,
        grpc_status=4,
    ),
    _Case(status=504, grpc_status=4),
    _Case(status=_FIRST_SERVER_ERROR, when=status_is("GE", _FIRST_SERVER_ERROR)),
    _Case(status=401),
    _Case(status=404),
    _Case(status=_FIRST_ERROR, when=status_is("GE", _FIRST_ERROR)),
)
PREFIX: Final = "headrace_refused"


def refusal_loggers() -> Sequence[Resource]:
    """Return the access logger that counts refusals: rate limit, size limit, or load shedding.

    `by` is one of a few values of Envoy: `local_rate_limited` here, `request_rate_limited` by the
    service, `via_upstream` by a replica.
    """
    tags: Json = [
        {"name": "route", "value_format": "%ROUTE_NAME%"},
        {"name": "by", "value_format": "%RESPONSE_CODE_DETAILS%"},
    ]
    counter: Resource = {"stat": {"name": "requests", "tags": tags}, "value_fixed": 1}
    # A gRPC call gets status 200, but the flag is set too.
    limited: Resource = {"response_flag_filter": {"flags": ["RL"]}}
    refused = either(limited, status_is("EQ", 429), status_is("EQ", 413))
    return [stats_logger("headrace.refusals", PREFIX, refused, counters=[counter])]


STAT_PREFIX: Final = "headrace"
_PRIVATE_MODE: Final = 0o600
_HANDSHAKE_TIMEOUT_S: Final = 10.0
_FRAMING_BYTES: Final = 64 << 10
_SMALLEST_WINDOW_BYTES: Final = 1 << 20
_STREAMS_PER_CONNECTION: Final = 1024


def build_listeners(
    settings: EnvoySettings,
    routes: Resource,
    configs: Mapping[Extension, Resource] | None = None,
) -> Sequence[Resource]:
    """Return the public listener and the private ones; `routes` is the table or its file.

    Args:
        configs: Configurations of extensions; None for their files.
    """
    filters = http_filters(settings, configs)
    manager = _connection_manager(settings, routes, filters, counts_all=settings.counts_all)
    own = _connection_manager(settings, routes, without_auth_filters(filters), counts_all=False)
    return [
        _listener(settings, manager),
        _own(settings, own),
        _shadow(own),
        verify_listener(settings, configs),
    ]


def routes_from_file(path: str) -> Resource:
    """Return a route source that reads the table from `path` whenever the file is replaced."""
    source: Resource = {"path_config_source": {"path": path}, "resource_api_version": "V3"}
    return {"rds": {"route_config_name": ROUTE_CONFIG, "config_source": source}}


def _own(settings: EnvoySettings, manager: Resource) -> Resource:
    """Return the control plane's listener without authentication, in this user's directory."""
    pipe: Resource = {"path": str(settings.private_socket), "mode": _PRIVATE_MODE}
    return {
        "name": "own",
        "address": {"pipe": pipe},
        "filter_chains": [{"filters": [connection_manager(manager)]}],
    }


def _shadow(manager: Resource) -> Resource:
    """Return the listener of copies, which only Envoy's own cluster reaches.

    It keeps the headers of the gateway, and counts by arm alone: a copy is no request of a caller
    in the request log, in the use of tokens and in traces.
    """
    left_out = {"early_header_mutation_extensions", "tracing"}
    of_copies = {name: value for name, value in manager.items() if name not in left_out}
    of_copies["access_log"] = arm_loggers(counts_all=False)
    return {
        "name": SHADOW,
        "internal_listener": {},
        "filter_chains": [{"filters": [connection_manager(of_copies)]}],
        "ignore_global_conn_limit": True,
    }


def _listener(settings: EnvoySettings, manager: Resource) -> Resource:
    """Return one listener for all ports: separate listeners would count limits separately."""
    tls = settings.tls
    secured: Resource = {}
    if tls is not None:
        secured = {
            "transport_socket": downstream_socket(tls, settings.run_dir),
            # Otherwise an idle connection without a request would stay open forever.
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
        # With port reuse a second gateway would bind the same port and receive half of the
        # requests.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [connection_manager(manager)], **secured}],
    }


def _connection_manager(
    settings: EnvoySettings,
    routes: Resource,
    filters: Sequence[Resource],
    *,
    counts_all: bool,
) -> Resource:
    path = settings.run_dir / "access.log"
    to_file = [access_log(path, settings.request_log)] if settings.access_log else []
    to_file += [arms_log(settings.arms_log)] if settings.arms_log is not None else []
    return {
        "stat_prefix": STAT_PREFIX,
        "codec_type": "AUTO",
        **routes,
        # `/v2/health/../models/m` is normalized before routing, or refused.
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        **_request_id(),
        **tracing(settings.tracing),
        "early_header_mutation_extensions": early_mutations(),
        "http_filters": filters,
        "local_reply_config": local_reply_config(),
        "access_log": [
            *to_file,
            *arm_loggers(counts_all=counts_all),
            *refusal_loggers(),
            *token_loggers(),
        ],
        "server_name": "headrace",
        "use_remote_address": True,
        # The certificate's name comes from the handshake alone, never from a header.
        "forward_client_cert_details": "SANITIZE",
        # Local callers may set Envoy's own headers as little as remote ones.
        "internal_address_config": {},
        "request_timeout": seconds(settings.connections.request_timeout_s),
        "request_headers_timeout": seconds(settings.connections.headers_timeout_s),
        "stream_idle_timeout": seconds(settings.connections.idle_timeout_s),
        "common_http_protocol_options": {
            "idle_timeout": seconds(settings.connections.idle_timeout_s),
            # Replicas treat `x_model` and `x-model` as two headers, as Envoy does. If a server may
            # treat them as one, routes refuse them (`CHECKING_NAMES`): here HTTP/2 streams would be
            # reset without a message.
            "headers_with_underscores_action": "ALLOW",
        },
        "http2_protocol_options": _http2(settings),
    }


def _request_id() -> Resource:
    """Return request id settings: a caller's `x-request-id` is kept, others get a new one."""
    return {
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": any_of(
                "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                # By chance, not by the id, which callers choose.
                {"pack_trace_reason": False, "use_request_id_for_trace_sampling": False},
            )
        },
    }


def _http2(settings: EnvoySettings) -> Resource:
    """Return HTTP/2 settings with windows as large as the largest message.

    The model's name is read from the first gRPC message, which is buffered whole until then,
    limited by the stream's window: a smaller one would refuse messages within the body limit.
    """
    window = max(settings.max_body_bytes + _FRAMING_BYTES, _SMALLEST_WINDOW_BYTES)
    return {
        "max_concurrent_streams": _STREAMS_PER_CONNECTION,
        "initial_stream_window_size": window,
        "initial_connection_window_size": window,
    }
