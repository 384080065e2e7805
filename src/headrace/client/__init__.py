"""Client SDK of the Open Inference Protocol. Imports `protocol` and below."""

from headrace.client.answers import (
    ConnectionLostError,
    Document,
    ModelMetadata,
    ProtocolError,
    ServerMetadata,
    TensorMetadata,
    UntrustedServerError,
)
from headrace.client.asynchronous import AsyncClient
from headrace.client.blocking import Client
from headrace.client.conversation import NO_RETRIES, RetryPolicy

__all__ = [
    "NO_RETRIES",
    "AsyncClient",
    "Client",
    "ConnectionLostError",
    "Document",
    "ModelMetadata",
    "ProtocolError",
    "RetryPolicy",
    "ServerMetadata",
    "TensorMetadata",
    "UntrustedServerError",
]
