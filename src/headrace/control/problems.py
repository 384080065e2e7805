"""How does the management API tell what went wrong? RFC 9457, with all mistakes at once."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from headrace.core import Code, ConflictError, HeadraceError
from headrace.core.spec import SpecError, SpecMistake
from headrace.protocol import http_status

PROBLEM_TYPE: Final = "application/problem+json"


class StaleError(ConflictError):
    """A change was to be made only to what the caller had read, and that is not there any more."""


class Mistake(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong, and where."""

    place: str
    message: str
    line: int | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem document; `code` is stable, `detail` is for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[Mistake, ...] = ()
    error: str = ""
    """The same as `detail`, where Triton's clients look for it."""


def problem_body(
    *, status: int, code: Code, detail: str, mistakes: Sequence[SpecMistake] = ()
) -> bytes:
    """A problem document as JSON."""
    problem = Problem(
        type="about:blank",
        title=_title(status),
        status=status,
        code=code.value,
        detail=detail,
        errors=tuple(Mistake(m.place, m.message, m.line) for m in mistakes),
        error=detail,
    )
    return msgspec.json.encode(problem)


def problem_of(error: HeadraceError) -> tuple[int, bytes]:
    """The HTTP status and body that `error` is answered with."""
    status = HTTPStatus.PRECONDITION_FAILED if isinstance(error, StaleError) else http_status(error)
    mistakes = error.mistakes if isinstance(error, SpecError) else ()
    return status, problem_body(
        status=status, code=error.code, detail=str(error), mistakes=mistakes
    )


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
