"""Error classes, grouped by the party that has to act.

Each error has a stable `code`, one of gRPC's canonical names. This module knows no HTTP or gRPC
numbers: `headrace.protocol.status` maps codes to both.
"""

from enum import StrEnum

from headrace.core.redact import redact_text


class Code(StrEnum):
    """gRPC's canonical status names (https://grpc.io/docs/guides/status-codes/), errors only."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"


class HeadraceError(Exception):
    """Root of all errors that Headrace raises deliberately. Messages hold no secrets."""

    code: Code = Code.INTERNAL
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed; None where waiting does not help."""

    def __init__(self, *texts: object) -> None:
        super().__init__(*(redact_text(text) if isinstance(text, str) else text for text in texts))


# The caller has to change the request.


class InvalidArgumentError(HeadraceError):
    """The request is invalid in any state of the server."""

    code = Code.INVALID_ARGUMENT


class PayloadTooLargeError(HeadraceError):
    """The request's body is larger than the server accepts."""

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, *, limit_bytes: int, got_bytes: int | None = None) -> None:
        size = "" if got_bytes is None else f" of {got_bytes} bytes"
        super().__init__(f"request body{size} exceeds the limit of {limit_bytes} bytes")
        self.limit_bytes = limit_bytes
        self.got_bytes = got_bytes


class UnsupportedError(HeadraceError):
    """The protocol has this operation, but this server does not implement it."""

    code = Code.UNIMPLEMENTED


class UnauthenticatedError(HeadraceError):
    """The caller is not authenticated: no key, token or certificate, or none that is valid."""

    code = Code.UNAUTHENTICATED


class PermissionDeniedError(HeadraceError):
    """The operation exists, but is not allowed for this caller or on this port."""

    code = Code.PERMISSION_DENIED


class NotFoundError(HeadraceError):
    """The named object does not exist."""

    code = Code.NOT_FOUND


class ModelNotFoundError(NotFoundError):
    """No model or model version has this name."""

    def __init__(self, name: str, version: str = "") -> None:
        which = f"'{name}' version {version}" if version else f"'{name}'"
        super().__init__(f"Request for unknown model: {which} is not found")
        self.name = name
        self.version = version


class EndpointNotFoundError(NotFoundError):
    """No endpoint has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no endpoint '{name}'; `headrace status` lists the endpoints")
        self.name = name


class AlreadyExistsError(HeadraceError):
    """An object of this name exists and differs."""

    code = Code.ALREADY_EXISTS


# The caller has to wait.


class OverloadedError(HeadraceError):
    """The replica's queue is full; the request was not tried."""

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(f"{message}; retry in {retry_after_s:.2g} s")
        self.retry_after_s = retry_after_s


class UnavailableError(HeadraceError):
    """The server is starting, stopping or unreachable; the request was not tried."""

    code = Code.UNAVAILABLE

    def __init__(self, message: str, *, retry_after_s: float | None = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FeaturesUnavailableError(HeadraceError):
    """The online store for a request's features does not answer; other replicas would fail too."""

    code = Code.UNAVAILABLE
    retry_after_s = 1.0


class ModelNotReadyError(UnavailableError):
    """The model exists but is not ready."""

    def __init__(self, name: str, version: str = "") -> None:
        which = f"'{name}' version {version}" if version else f"'{name}'"
        super().__init__(f"Request for unknown model: {which} is not at ready state")


# The deadline passed, or the caller left.


class DeadlineExceededError(HeadraceError):
    """The deadline passed, or cannot be met."""

    code = Code.DEADLINE_EXCEEDED


class RequestCancelledError(HeadraceError):
    """The caller left before the answer."""

    code = Code.CANCELLED


# The operator has to act.


class FailedPreconditionError(HeadraceError):
    """The system's state forbids the operation, for instance removing a version in use."""

    code = Code.FAILED_PRECONDITION


class ConflictError(HeadraceError):
    """Another writer changed the same object first; read it again and retry."""

    code = Code.ABORTED


class UnsupportedModelError(InvalidArgumentError):
    """No runtime here can serve the file as a model; the message says why."""


class CodeNotAllowedError(FailedPreconditionError):
    """The model contains its author's code, which is not permitted to run.

    `reason`: the part of the model that is code; empty if all models of its runtime run code.
    """

    def __init__(self, description: str, runtime: str, reason: str = "") -> None:
        cause = (
            reason or f"a model of runtime '{runtime}' runs its author's code wherever it is loaded"
        )
        super().__init__(
            f"{description}: {cause}; if you trust the author, set `allow_code: true` at the "
            "endpoint"
            " in the spec, or pass `--allow-code` on the command line"
        )
        self.what = description
        self.runtime = runtime
        self.reason = reason


class NotSignedError(FailedPreconditionError):
    """A version has no signature by a trusted key, but needs one."""


class ArtifactCorruptError(HeadraceError):
    """A stored artifact differs from what was pushed."""

    code = Code.DATA_LOSS


# Headrace or the model has to be fixed.


class RuntimeFailedError(HeadraceError):
    """The model failed on this request."""

    code = Code.INTERNAL
