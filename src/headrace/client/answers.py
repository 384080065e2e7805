"""Responses of a server about itself and its models, and the errors of a call."""

import re
from typing import Any, Final

import msgspec

from headrace.core import (
    VARIABLE,
    Code,
    Datatype,
    DeadlineExceededError,
    HeadraceError,
    ModelSignature,
    TensorSpec,
    UnauthenticatedError,
)

Document = dict[str, Any]
"""A JSON object with the protocol's keys."""


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Name and version of a server, and its protocol extensions."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output; -1 in `shape` is a variable size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and outputs of a model; `versions` are those that can be requested by number."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


def signature_from(metadata: ModelMetadata, config: Document | None) -> ModelSignature:
    """Return the signature in a server's metadata and configuration of a model.

    Metadata does not say whether axis 0 is a batch; the configuration's `max_batch_size` does. For
    a server without configurations, axis 0 is a batch if it is variable in all inputs and outputs.
    """
    tensors = (*metadata.inputs, *metadata.outputs)
    if config is None:
        batched = all(tensor.shape[:1] == (VARIABLE,) for tensor in tensors)
    else:
        batched = int(config.get("max_batch_size", 0)) > 0
    return ModelSignature(
        inputs=tuple(map(_spec, metadata.inputs)),
        outputs=tuple(map(_spec, metadata.outputs)),
        batched=batched,
    )


def _spec(tensor: TensorMetadata) -> TensorSpec:
    return TensorSpec(name=tensor.name, datatype=Datatype(tensor.datatype), shape=tensor.shape)


# Error texts of OpenSSL and BoringSSL, which httpx and grpcio pass on.
_UNTRUSTED: Final = re.compile(
    "CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed|Peer name .* is not in peer"
)
_REFUSED: Final = re.compile(
    "ALERT_(CERTIFICATE_REQUIRED|UNKNOWN_CA|CERTIFICATE_EXPIRED|BAD_CERTIFICATE|CERTIFICATE_UNKNOWN)"
)


class ConnectionLostError(HeadraceError):
    """The connection broke after the request was sent: it may or may not have run.

    The client does not retry. A model's run changes nothing, so the caller may.
    """

    code = Code.UNKNOWN


class ProtocolError(HeadraceError):
    """The server's response does not follow the protocol; it is likely another kind of server."""

    code = Code.INTERNAL


class UntrustedServerError(HeadraceError):
    """The server's certificate has no trusted signature, is expired, or names another server.

    Nothing was sent. A retry would fail as well.
    """

    code = Code.FAILED_PRECONDITION


def tls_failure(text: str) -> HeadraceError | None:
    """Return the error for a failed TLS handshake, from the library's text; None for other texts.

    These errors are not retried.
    """
    if _UNTRUSTED.search(text):
        return UntrustedServerError(f"the server is not trusted: {text}")
    if _REFUSED.search(text):
        msg = f"the server rejected the client certificate, or requires one: {text}"
        return UnauthenticatedError(msg)
    return None


def too_late(timeout_s: float | None) -> DeadlineExceededError:
    """Return the error for a server that has not answered within `timeout_s`."""
    within = "in time" if timeout_s is None else f"within {timeout_s:.3g} s"
    return DeadlineExceededError(f"the server did not answer {within}")
