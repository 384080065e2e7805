"""Codecs of the Open Inference Protocol: bytes to requests, responses to bytes, errors to statuses.

No I/O, no async, no web framework. gRPC messages are in `headrace.protocol.grpc_codec`, apart, so
that only those who speak gRPC load protobuf.
"""

from headrace.protocol.json_decode import InferDecoder
from headrace.protocol.json_encode import Buffer, InferEncoder
from headrace.protocol.status import (
    GRPC_STATUS,
    HTTP_STATUS,
    encode_error,
    error_from_grpc,
    error_from_http,
    grpc_status,
    http_status,
)

__all__ = [
    "GRPC_STATUS",
    "HTTP_STATUS",
    "Buffer",
    "InferDecoder",
    "InferEncoder",
    "encode_error",
    "error_from_grpc",
    "error_from_http",
    "grpc_status",
    "http_status",
]
