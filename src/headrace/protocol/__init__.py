"""Codecs of the Open Inference Protocol. Imports `observe` and below.

No I/O, no async, no web framework. gRPC messages are in the separate
`headrace.protocol.grpc_codec`, so that only processes with gRPC load protobuf.
"""

from headrace.protocol.content import compress, decompress
from headrace.protocol.grpc_wire import DESCRIPTOR_SET_PATH
from headrace.protocol.json_decode import InferDecoder
from headrace.protocol.json_encode import Buffer, InferEncoder
from headrace.protocol.metadata import (
    IndexEntry,
    decode_index_request,
    encode_document,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from headrace.protocol.predictions import PredictionCodec
from headrace.protocol.status import (
    GRPC_STATUS,
    HTTP_STATUS,
    encode_error,
    error_from_grpc,
    error_from_http,
    grpc_status,
    http_status,
)
from headrace.protocol.v1 import V1Codec
from headrace.protocol.values import Body

__all__ = [
    "DESCRIPTOR_SET_PATH",
    "GRPC_STATUS",
    "HTTP_STATUS",
    "Body",
    "Buffer",
    "IndexEntry",
    "InferDecoder",
    "InferEncoder",
    "PredictionCodec",
    "V1Codec",
    "compress",
    "decode_index_request",
    "decompress",
    "encode_document",
    "encode_error",
    "error_from_grpc",
    "error_from_http",
    "grpc_status",
    "http_status",
    "model_config",
    "model_metadata",
    "model_statistics",
    "repository_index",
    "server_metadata",
]
