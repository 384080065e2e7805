"""Errors, their codes and statuses."""

from collections.abc import Mapping
from typing import Final

from headrace import core
from headrace.core import Code, HeadraceError
from headrace.protocol import GRPC_STATUS, HTTP_STATUS
from scripts.reference.text import summary

WHO_ACTS: Final[Mapping[Code, str]] = {
    Code.INVALID_ARGUMENT: "the caller changes the request",
    Code.NOT_FOUND: "the caller names something that exists",
    Code.ALREADY_EXISTS: "the caller takes another name",
    Code.UNAUTHENTICATED: "the caller shows a key, a token or a certificate that counts",
    Code.PERMISSION_DENIED: "the caller asks for the right, or uses the port that allows it",
    Code.UNIMPLEMENTED: "the caller does without",
    Code.RESOURCE_EXHAUSTED: "the caller waits, or sends less",
    Code.UNAVAILABLE: "the caller waits",
    Code.DEADLINE_EXCEEDED: "the caller waits longer, or the operator adds replicas",
    Code.CANCELLED: "nobody: the caller left",
    Code.FAILED_PRECONDITION: "the operator changes the system's state",
    Code.ABORTED: "whoever changed it reads it again and retries",
    Code.DATA_LOSS: "the operator pushes the model again",
    Code.INTERNAL: "the operator reads the log, under the request's id",
}


def error_table() -> str:
    """Every error class: its code, its statuses, its meaning, who can act."""
    rows = [
        f"| `{kind.__name__}` | {kind.code} | {_http(kind)} | {GRPC_STATUS[kind.code]} "
        f"| {summary(kind)} | {WHO_ACTS[kind.code]} |"
        for kind in sorted(_classes(), key=lambda kind: list(Code).index(kind.code))
    ]
    head = ["| class | code | HTTP | gRPC | meaning | who acts |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def code_table() -> str:
    """Every code with its statuses."""
    rows = [f"| {code} | {HTTP_STATUS[code]} | {GRPC_STATUS[code]} |" for code in Code]
    return "\n".join(["| code | HTTP | gRPC |", "|---|---|---|", *rows])


def _classes() -> list[type[HeadraceError]]:
    named = [getattr(core, name) for name in core.__all__]
    kinds = [kind for kind in named if isinstance(kind, type) and issubclass(kind, HeadraceError)]
    return [kind for kind in kinds if kind is not HeadraceError]


def _http(kind: type[HeadraceError]) -> int:
    return 413 if kind is core.PayloadTooLargeError else HTTP_STATUS[kind.code]
