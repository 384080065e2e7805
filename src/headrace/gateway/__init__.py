"""Data plane: Envoy's configuration and Envoy itself. Imports `scoring` and below."""

from headrace.gateway.access_log import RoutedRequest, read_arms
from headrace.gateway.binary import (
    GATEWAY_USER,
    EnvoyNotFoundError,
    GatewayUnavailableError,
    NotOurGatewayError,
    PortInUseError,
    SnapshotRejectedError,
    UnsafeDirectoryError,
    gateway_user,
    listen_unix,
    make_private,
    runtime_dir,
    socket_mode,
)
from headrace.gateway.callers import usable_key_set
from headrace.gateway.clusters import arm_of, cluster_name
from headrace.gateway.envoy import EnvoyGateway
from headrace.gateway.publisher import Admin, SecretFiles
from headrace.gateway.routes import HELD_PREFIX, REFLECTION_PREFIX
from headrace.gateway.settings import (
    ApiKey,
    EndpointRoute,
    EnvoySettings,
    GatewayPolicy,
    LimitsTarget,
    ListenerTls,
    MirrorTarget,
    RevisionTarget,
    check_socket_path,
)
from headrace.gateway.snapshot import WATCHED_FILES, Snapshot, SnapshotBuilder, build_snapshot
from headrace.gateway.statistics import (
    MAX_COUNTED,
    ArmStatistics,
    Bucket,
    GatewayStatistics,
    Handshakes,
    TokenStatistics,
)

__all__ = [
    "GATEWAY_USER",
    "HELD_PREFIX",
    "MAX_COUNTED",
    "REFLECTION_PREFIX",
    "WATCHED_FILES",
    "Admin",
    "ApiKey",
    "ArmStatistics",
    "Bucket",
    "EndpointRoute",
    "EnvoyGateway",
    "EnvoyNotFoundError",
    "EnvoySettings",
    "GatewayPolicy",
    "GatewayStatistics",
    "GatewayUnavailableError",
    "Handshakes",
    "LimitsTarget",
    "ListenerTls",
    "MirrorTarget",
    "NotOurGatewayError",
    "PortInUseError",
    "RevisionTarget",
    "RoutedRequest",
    "SecretFiles",
    "Snapshot",
    "SnapshotBuilder",
    "SnapshotRejectedError",
    "TokenStatistics",
    "UnsafeDirectoryError",
    "arm_of",
    "build_snapshot",
    "check_socket_path",
    "cluster_name",
    "gateway_user",
    "listen_unix",
    "make_private",
    "read_arms",
    "runtime_dir",
    "socket_mode",
    "usable_key_set",
]
