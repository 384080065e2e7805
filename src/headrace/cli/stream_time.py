"""Which moment does a person mean? `2026-11-27T06:00Z`, or `-2h` for so long ago."""

from datetime import UTC, datetime
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.core.text import duration_s

_SHOWN: Final = 60


def moment(text: str, *, now: float) -> float:
    """The Unix time of `text`; one without a zone is UTC.

    Raises:
        InvalidArgumentError: It is no time, or not yet over.
    """
    ago_s = duration_s(text.strip()[1:]) if text.strip().startswith("-") else None
    if ago_s is not None:
        return now - ago_s
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        message = (
            f"{text[:_SHOWN]!r} is no time: write it as 2026-11-27T06:00Z, or as -2h "
            "(s, m, h, d or w ago)"
        )
        raise InvalidArgumentError(message) from None
    at = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    if at > now:
        raise InvalidArgumentError(f"{text[:_SHOWN]!r} is yet to come")
    return at


def time_text(at_s: float) -> str:
    """A moment for people, to the second, in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
