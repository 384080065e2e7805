"""One JSON line per request, written by Envoy.

Lines are buffered for up to a second. Envoy appends for ever: rotate by renaming the file and
asking for a new one (`EnvoyGateway.rotate_access_log`).
"""

from pathlib import Path
from typing import Final

from headrace.gateway.resources import Resource, typed

_FIELDS: Final = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "remote": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "caller": "%REQ(X-HEADRACE-CALLER)%",
    "credential": "%REQ(X-HEADRACE-CREDENTIAL)%",
    "method": "%REQ(:METHOD)%",
    "path": "%PATH(NQ)%",
    "cluster": "%UPSTREAM_CLUSTER_RAW%",
    "replica": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "code": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
    "flags": "%RESPONSE_FLAGS%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
}


def access_log(path: Path) -> Resource:
    """A logger that appends to `path`. The query string is left out: callers put secrets there."""
    return typed(
        "headrace.access_log",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        {"path": str(path), "log_format": {"json_format": _FIELDS}},
    )
