"""Retries of batches that failed for a reason that may pass. The caller brings the time."""

from typing import Final

from headrace.core import Code, HeadraceError, PayloadTooLargeError
from headrace.core.backoff import Backoff
from headrace.core.spec_stream_parts import StreamErrorsSpec

_MAY_PASS: Final = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})


def may_pass(error: HeadraceError) -> bool:
    """Whether the same records may be scored later on."""
    return error.code in _MAY_PASS and not isinstance(error, PayloadTooLargeError)


def retry_at(
    errors: StreamErrorsSpec,
    *,
    tries: int,
    since: float,
    now: float,
    chance: float,
    asked_s: float | None = None,
) -> float | None:
    """Return the monotonic time of the next try; None if no more is made.

    Args:
        tries: How many were made, at least 1.
        since: When the first one failed.
        chance: Evenly distributed in [0, 1).
        asked_s: How long the one that failed asks to be left alone; at most `max_delay_s` counts.
    """
    if errors.retry_for_s is not None and now - since >= errors.retry_for_s:
        return None
    backoff = Backoff(first_s=errors.first_delay_s, limit_s=errors.max_delay_s)
    pause_s = backoff.jittered_s(tries, chance=chance)
    again = now + max(pause_s, min(asked_s or 0.0, errors.max_delay_s))
    return again if errors.retry_for_s is None else min(again, since + errors.retry_for_s)
