"""The data plane: from endpoints and replicas to Envoy's configuration, and Envoy itself."""

from headrace.gateway.admin import Admin
from headrace.gateway.clusters import arm_of, cluster_name
from headrace.gateway.envoy import EnvoyGateway
from headrace.gateway.errors import (
    EnvoyNotFoundError,
    GatewayUnavailableError,
    NotOurGatewayError,
    PortInUseError,
    SnapshotRejectedError,
    UnsafeDirectoryError,
)
from headrace.gateway.handshakes import Handshakes
from headrace.gateway.key_sets import usable_key_set
from headrace.gateway.policy import ApiKey, GatewayPolicy
from headrace.gateway.routes import HELD_PREFIX
from headrace.gateway.runtime_dir import (
    GATEWAY_USER,
    gateway_user,
    make_private,
    runtime_dir,
    socket_mode,
)
from headrace.gateway.secrets import SecretFiles
from headrace.gateway.settings import (
    MAX_SOCKET_PATH_BYTES,
    EndpointRoute,
    GatewaySettings,
    LimitsTarget,
    ListenerTls,
    MirrorTarget,
    RevisionTarget,
    check_socket_path,
)
from headrace.gateway.snapshot import WATCHED_FILES, Snapshot, SnapshotBuilder, build_snapshot
from headrace.gateway.statistics import MOST_COUNTED, ArmStatistics, GatewayStatistics

__all__ = [
    "GATEWAY_USER",
    "HELD_PREFIX",
    "MAX_SOCKET_PATH_BYTES",
    "MOST_COUNTED",
    "WATCHED_FILES",
    "Admin",
    "ApiKey",
    "ArmStatistics",
    "EndpointRoute",
    "EnvoyGateway",
    "EnvoyNotFoundError",
    "GatewayPolicy",
    "GatewaySettings",
    "GatewayStatistics",
    "GatewayUnavailableError",
    "Handshakes",
    "LimitsTarget",
    "ListenerTls",
    "MirrorTarget",
    "NotOurGatewayError",
    "PortInUseError",
    "RevisionTarget",
    "SecretFiles",
    "Snapshot",
    "SnapshotBuilder",
    "SnapshotRejectedError",
    "UnsafeDirectoryError",
    "arm_of",
    "build_snapshot",
    "check_socket_path",
    "cluster_name",
    "gateway_user",
    "make_private",
    "runtime_dir",
    "socket_mode",
    "usable_key_set",
]
