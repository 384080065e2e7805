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


def typed(name: str, type_name: str, config: Resource | None = None) -> Resource:
    """Return an extension: its name and its configuration with its protobuf type."""
    return {"name": name, "typed_config": any_of(type_name, config)}


def any_of(type_name: str, config: Resource | None = None) -> Resource:
    """Return `config` as a `google.protobuf.Any`."""
    return {"@type": _TYPES + type_name, **(config or {})}


def set_header(key: str, value: str) -> Resource:
    """Return an operation that sets a header, replacing its value."""
    return {
        "header": {"key": key, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def seconds(duration_s: float) -> str:
    """Return a `google.protobuf.Duration` in JSON, to the millisecond."""
    return f"{duration_s:.3f}s"


def address_of(address: str) -> Resource:
    """Return Envoy's form of `unix:/path` or `host:port`."""
    match parse_address(address):
        case Path() as path:
            return {"pipe": {"path": str(path)}}
        case host, port:
            return {"socket_address": {"address": host, "port_value": port}}
