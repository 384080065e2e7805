"""What may an API server answer instead, and what is done about it?"""

import json
import random
import re
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
from headrace.core.backoff import Backoff

_BACKOFF: Final = Backoff(first_s=0.2, limit_s=30.0)
_MOST_SAID: Final = 400
NO_API_SERVER: Final = "what answers is no API server, but a page: is a proxy between?"


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


class ObjectFailedError(ApiUnavailableError):
    """The API server answers, and fails at this object: as when a webhook does not answer it."""


class LeadershipLostError(UnavailableError):
    """Another control plane leads, or may: this one has to end."""


def failure_of(status: int, body: bytes, retry_after: str, *, what: str) -> HeadraceError:
    """The error that an answer of the API server means.

    Args:
        retry_after: The header, in seconds.
        what: What was asked, for the message.
    """
    if body.lstrip()[:1] == b"<":
        # Whoever answers so knows of no object, and its 404 says of none that it is gone.
        return ApiUnavailableError(f"{what}: {NO_API_SERVER} (HTTP status {status})")
    message = f"{what}: {_said(body) or _phrase(status)}"
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return ObjectFailedError(message)
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ApiUnavailableError(message, retry_after_s=_seconds(retry_after))
    if status == HTTPStatus.UNPROCESSABLE_ENTITY and any(word in message for word in _FIXED):
        return ObjectFixedError(message)
    if status == HTTPStatus.FORBIDDEN and _ADMISSION.search(message) is not None:
        return PermissionDeniedError(message)  # it says itself what is wrong, and no Role mends it
    kind, way_out = _MEANING.get(status, (InvalidArgumentError, ""))
    return kind(f"{message}{way_out}")


_ADMISSION: Final = re.compile(
    r"exceeded quota|being terminated|admission webhook|denied (the )?request|violates PodSecurity"
)
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
    jittered = _BACKOFF.jittered_s(failures, chance=chance())
    return jittered if asked_s is None else max(asked_s * (1.0 + 0.1 * chance()), jittered)


def _said(body: bytes) -> str:
    """The message of a Status, or the text as it is."""
    try:
        message = json.loads(body).get("message", "")
    except (ValueError, AttributeError):
        message = body.decode("utf-8", "replace")
    return str(message).strip()[:_MOST_SAID]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP status {status}"


def _seconds(retry_after: str) -> float | None:
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        return None  # a date, or nothing
