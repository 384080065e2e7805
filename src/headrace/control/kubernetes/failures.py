"""What may an API server answer instead, and what is done about it?"""

import json
import random
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)

FIRST_DELAY_S: Final = 0.2
_LONGEST_DELAY_S: Final = 30.0
_MOST_SAID: Final = 400


class ObjectMissingError(NotFoundError):
    """The object, or its kind, is not there."""


class ObjectChangedError(ConflictError):
    """Somebody else changed the object meanwhile, or manages what we would say."""


class ObjectFixedError(FailedPreconditionError):
    """What we say is another than before at a place that a cluster never changes."""


class WatchExpiredError(HeadraceError):
    """What we know is too old to go on from: everything has to be listed anew."""


class ApiUnavailableError(UnavailableError):
    """The API server cannot answer now."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LeadershipLostError(UnavailableError):
    """Another control plane leads, or may: this one has to end."""


def failure_of(status: int, body: bytes, retry_after: str, *, what: str) -> HeadraceError:
    """The error that an answer of the API server means.

    Args:
        retry_after: The header, in seconds.
        what: What was asked, for the message.
    """
    message = f"{what}: {_said(body) or HTTPStatus(status).phrase}"
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ApiUnavailableError(message, retry_after_s=_seconds(retry_after))
    if status == HTTPStatus.UNPROCESSABLE_ENTITY and any(word in message for word in _FIXED):
        return ObjectFixedError(message)
    kind, way_out = _MEANING.get(status, (InvalidArgumentError, ""))
    return kind(f"{message}{way_out}")


_FIXED: Final = ("immutable", "may not change")
_MEANING: Final[dict[int, tuple[type[HeadraceError], str]]] = {
    HTTPStatus.GONE: (WatchExpiredError, ""),
    HTTPStatus.CONFLICT: (ObjectChangedError, ""),
    HTTPStatus.NOT_FOUND: (ObjectMissingError, ""),
    HTTPStatus.FORBIDDEN: (
        PermissionDeniedError,
        " (the control plane's Role lacks this; the chart's has it)",
    ),
    HTTPStatus.UNAUTHORIZED: (
        UnauthenticatedError,
        " (is the token of its service account mounted?)",
    ),
}


def delay_s(
    failures: int,
    *,
    asked_s: float | None = None,
    chance: Callable[[], float] = random.random,
) -> float:
    """Seconds to wait after the `failures`-th failure in a row: longer each time, with jitter.

    Args:
        asked_s: What the server asks for, as the least.
        chance: Between 0 and 1; spreads those who failed together.
    """
    assert failures >= 1
    longest = min(FIRST_DELAY_S * 2.0 ** min(failures - 1, 64), _LONGEST_DELAY_S)
    jittered = longest * (0.5 + 0.5 * chance())
    return jittered if asked_s is None else max(asked_s * (1.0 + 0.1 * chance()), jittered)


def _said(body: bytes) -> str:
    """The message of a Status, or the text as it is."""
    try:
        message = json.loads(body).get("message", "")
    except (ValueError, AttributeError):
        message = body.decode("utf-8", "replace")
    return str(message).strip()[:_MOST_SAID]


def _seconds(retry_after: str) -> float | None:
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        return None  # a date, or nothing
