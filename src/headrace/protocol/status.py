"""Mapping between error codes and the statuses of HTTP and gRPC."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import orjson

from headrace.core import (
    AlreadyExistsError,
    ArtifactCorruptError,
    Code,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RequestCancelledError,
    RuntimeFailedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from headrace.core.error_kind import UNDECODABLE

HTTP_STATUS: Final[Mapping[Code, int]] = {
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 409,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
}
GRPC_STATUS: Final[Mapping[Code, int]] = {
    Code.CANCELLED: 1,
    Code.UNKNOWN: 2,
    Code.INVALID_ARGUMENT: 3,
    Code.DEADLINE_EXCEEDED: 4,
    Code.NOT_FOUND: 5,
    Code.ALREADY_EXISTS: 6,
    Code.PERMISSION_DENIED: 7,
    Code.RESOURCE_EXHAUSTED: 8,
    Code.FAILED_PRECONDITION: 9,
    Code.ABORTED: 10,
    Code.OUT_OF_RANGE: 11,
    Code.UNIMPLEMENTED: 12,
    Code.INTERNAL: 13,
    Code.UNAVAILABLE: 14,
    Code.DATA_LOSS: 15,
    Code.UNAUTHENTICATED: 16,
}
_PAYLOAD_TOO_LARGE: Final = 413
_SERVER_ERROR: Final = 500

_CLASSES: Final[Mapping[Code, type[HeadraceError]]] = {
    Code.CANCELLED: RequestCancelledError,
    Code.UNKNOWN: HeadraceError,
    Code.INVALID_ARGUMENT: InvalidArgumentError,
    Code.DEADLINE_EXCEEDED: DeadlineExceededError,
    Code.NOT_FOUND: NotFoundError,
    Code.ALREADY_EXISTS: AlreadyExistsError,
    Code.PERMISSION_DENIED: PermissionDeniedError,
    Code.UNAUTHENTICATED: UnauthenticatedError,
    Code.RESOURCE_EXHAUSTED: OverloadedError,
    Code.FAILED_PRECONDITION: FailedPreconditionError,
    Code.ABORTED: ConflictError,
    Code.OUT_OF_RANGE: InvalidArgumentError,
    Code.UNIMPLEMENTED: UnsupportedError,
    Code.INTERNAL: RuntimeFailedError,
    Code.UNAVAILABLE: UnavailableError,
    Code.DATA_LOSS: ArtifactCorruptError,
}
_HTTP_CODES: Final[Mapping[int, Code]] = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.FAILED_PRECONDITION,
    413: Code.RESOURCE_EXHAUSTED,
    422: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
_GRPC_CODES: Final[Mapping[int, Code]] = {number: code for code, number in GRPC_STATUS.items()}

# Texts of `headrace.core.errors` whose values become fields again.
_UNKNOWN_MODEL: Final = re.compile(
    r"^Request for unknown model: '([^']*)'(?: version (\S+))? is not found"
)
_TOO_LARGE: Final = re.compile(
    r"request body(?: of (\d{1,18}) bytes)? exceeds the limit of (\d{1,18}) bytes"
)
_LONGEST_TEXT: Final = 2000


def http_status(error: HeadraceError) -> int:
    """Return the HTTP status of `error`."""
    if isinstance(error, PayloadTooLargeError):
        return _PAYLOAD_TOO_LARGE
    return HTTP_STATUS[error.code]


def grpc_status(error: HeadraceError) -> int:
    """Return the number of the gRPC status of `error`."""
    return GRPC_STATUS[error.code]


def encode_error(error: BaseException | str) -> bytes:
    """Return the protocol's error body, `{"error": "..."}`."""
    # A message may quote a caller's text; a lone surrogate must not make the response fail.
    text = str(error).encode("utf-8", "replace").decode("utf-8")
    return orjson.dumps({"error": text})


def error_from_http(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> HeadraceError:
    """Return the error in a server's response: its class, its text, its `retry_after_s`.

    Args:
        status: Any status that is not a success.
        body: The protocol's error body, or any body that a proxy wrote.
        headers: Looked up by lower-case name, which httpx's and Headrace's mappings allow.
    """
    code = _HTTP_CODES.get(status)
    if code is None:
        code = Code.UNKNOWN if status >= _SERVER_ERROR else Code.INVALID_ARGUMENT
    text = _error_text(body) or f"the server answered with HTTP status {status}"
    retry_after_s = _seconds((headers or {}).get("retry-after"))
    return _error(code, text, retry_after_s, too_large=status == _PAYLOAD_TOO_LARGE)


def error_from_grpc(
    code: int | Code, message: str = "", trailing: Iterable[tuple[str, str | bytes]] = ()
) -> HeadraceError:
    """Return the error of a gRPC status: its class, its text, its `retry_after_s`.

    Args:
        code: The status' number or name; not OK.
        message: The status' text, decoded.
        trailing: Metadata pairs; `retry-after` (seconds) and `grpc-retry-pushback-ms` are read.
    """
    named = code if isinstance(code, Code) else _GRPC_CODES.get(code, Code.UNKNOWN)
    metadata = {key.lower(): value for key, value in trailing if isinstance(value, str)}
    retry_after_s = _seconds(metadata.get("retry-after"))
    if retry_after_s is None:
        pushback_ms = _seconds(metadata.get("grpc-retry-pushback-ms"))
        retry_after_s = None if pushback_ms is None else pushback_ms / 1000
    return _error(named, message or f"the server answered with {named}", retry_after_s)


def _error(
    code: Code, text: str, retry_after_s: float | None, *, too_large: bool = False
) -> HeadraceError:
    kind = _CLASSES[code]
    fields: dict[str, Any] = {"retry_after_s": retry_after_s}
    limit = _TOO_LARGE.search(text) if code == Code.RESOURCE_EXHAUSTED else None
    if too_large or limit:
        kind = PayloadTooLargeError
        fields["limit_bytes"] = int(limit[2]) if limit else 0
        fields["got_bytes"] = int(limit[1]) if limit and limit[1] else None
    elif code == Code.NOT_FOUND and (unknown := _UNKNOWN_MODEL.match(text)):
        kind = ModelNotFoundError
        fields |= {"name": unknown[1], "version": unknown[2] or ""}
    # Without the constructors, which would compose the text again.
    error = kind.__new__(kind, text)
    if error.code != code:
        fields["code"] = code
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def _error_text(body: bytes) -> str:
    """Return the text in an error body; of other bodies, their beginning."""
    try:
        document = msgspec.json.decode(body)
    except UNDECODABLE:
        return body[:_LONGEST_TEXT].decode("utf-8", "replace").strip()
    if isinstance(document, dict):
        text = document.get("error") or document.get("detail") or document.get("message")
        if isinstance(text, dict):  # OpenAI's form
            text = text.get("message")
        if isinstance(text, str):
            return text
    return body[:_LONGEST_TEXT].decode("utf-8", "replace").strip()


def _seconds(value: str | None) -> float | None:
    """Return a non-negative number of seconds; None for a date or invalid text."""
    try:
        seconds = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
