"""Envoy resources as plain JSON, and functions for repeated structures.

Protobuf classes are not used: they cost half a second of import and 50 MB, and `envoy --mode
validate` detects wrong field names in the tests.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from headrace.gateway.settings import parse_address

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
Resource: TypeAlias = Mapping[str, "Json"]

HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
"""Type and key of the HTTP options of a cluster."""
RUNTIME_KEY: Final = "headrace.none"
"""Name of an override that is never set: Envoy requires one for some values."""
_TYPES: Final = "type.googleapis.com/"
_METADATA: Final = "headrace"
UPSTREAM_NAME: Final = f"%UPSTREAM_METADATA({_METADATA}:cluster)%"
"""Format of the cluster of a request's server, of servers with `upstream_metadata`: a cluster with
fallbacks stands for several."""
ANSWERED_BY: Final = (
    '%COALESCE({"operators": [{"command": "UPSTREAM_METADATA", "param": "'
    + _METADATA
    + ':cluster"}'
    ', "UPSTREAM_CLUSTER_RAW"]})%'
)
"""Format of the cluster of a request's server; without a server, of the route's cluster."""


def upstream_metadata(cluster: str) -> Resource:
    """Return the part of a cluster's server that names the cluster."""
    return {"metadata": {"filter_metadata": {_METADATA: {"cluster": cluster}}}}


def load_assignment(
    cluster: str, *addresses: Resource, metadata: Resource | None = None
) -> Resource:
    """Return the part of a cluster that lists its servers, each with `metadata`."""
    servers: Json = [{"endpoint": {"address": a}, **(metadata or {})} for a in addresses]
    return {
        "load_assignment": {"cluster_name": cluster, "endpoints": [{"lb_endpoints": servers}]},
    }


def socket_address(host: str, port: int) -> Resource:
    """Return Envoy's form of an IP address, or of a name where Envoy resolves it, and a port."""
    return {"socket_address": {"address": host, "port_value": port}}


def http_options(version: str, **options: Json) -> Resource:
    """Return the part of a cluster that names its version of HTTP, `http` or `http2`."""
    protocol: Resource = {"explicit_http_config": {f"{version}_protocol_options": {}}, **options}
    return {"typed_extension_protocol_options": {HTTP_OPTIONS: any_of(HTTP_OPTIONS, protocol)}}


def status_is(op: str, status: int) -> Resource:
    """Return the condition of an access logger that the status is equal (`EQ`) or higher (`GE`)."""
    value: Resource = {"default_value": status, "runtime_key": RUNTIME_KEY}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


def header_matches(name: str, **match: Json) -> Resource:
    """Return the condition of an access logger that a header matches."""
    return {"header_filter": {"header": {"name": name, **match}}}


def every(*conditions: Resource) -> Resource:
    """Return the condition of an access logger that all of these hold."""
    return {"and_filter": {"filters": conditions}}


def either(*conditions: Resource) -> Resource:
    """Return the condition of an access logger that one of these holds."""
    return {"or_filter": {"filters": conditions}}


IS_GRPC: Final = header_matches("content-type", string_match={"prefix": "application/grpc"})
"""Condition of an access logger: the request is a gRPC call."""


def expression(text: str) -> Resource:
    """Return a condition of an access logger on Envoy's attributes; false without a result."""
    kind = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {"extension_filter": typed("headrace.expression", kind, {"expression": text})}


def stats_logger(name: str, prefix: str, condition: Resource, **stats: Json) -> Resource:
    """Return an access logger that counts the requests for which `condition` holds."""
    kind = "envoy.extensions.access_loggers.stats.v3.Config"
    return {**typed(name, kind, {"stat_prefix": prefix, **stats}), "filter": condition}


def connection_manager(config: Resource) -> Resource:
    """Return the network filter that serves HTTP."""
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    return typed("envoy.filters.network.http_connection_manager", kind, config)


def typed(name: str, type_name: str, config: Resource | None = None) -> Resource:
    """Return an extension: its name and its configuration with its protobuf type."""
    return {"name": name, "typed_config": any_of(type_name, config)}


def any_of(type_name: str, config: Resource | None = None) -> Resource:
    """Return `config` as a `google.protobuf.Any`."""
    return {"@type": _TYPES + type_name, **(config or {})}


def set_header(key: str, value: str, *, replaces: bool = True) -> Resource:
    """Return an operation that sets a header; its present value stays unless `replaces`."""
    action = "OVERWRITE_IF_EXISTS_OR_ADD" if replaces else "ADD_IF_ABSENT"
    return {"header": {"key": key, "value": value}, "append_action": action}


def seconds(duration_s: float) -> str:
    """Return a `google.protobuf.Duration` in JSON, to the millisecond."""
    return f"{duration_s:.3f}s"


def address_of(address: str) -> Resource:
    """Return Envoy's form of `unix:/path` or `host:port`."""
    match parse_address(address):
        case Path() as path:
            return {"pipe": {"path": str(path)}}
        case host, port:
            return socket_address(host, port)
