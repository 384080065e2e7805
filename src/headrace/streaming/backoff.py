"""When is a failed batch tried again, and when is that over? The caller brings the time."""

from dataclasses import dataclass
from typing import Final

from headrace.core import Code, HeadraceError, PayloadTooLargeError
from headrace.streaming.settings import ErrorSettings

_MAY_PASS: Final = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})
_MOST_DOUBLINGS: Final = 32


def may_pass(error: HeadraceError) -> bool:
    """Whether the same records may be scored later on."""
    return error.code in _MAY_PASS and not isinstance(error, PayloadTooLargeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses between tries: doubled each time, in part by chance, until it is over."""

    first_delay_s: float
    max_delay_s: float
    retry_for_s: float | None

    def again_at(
        self, *, tries: int, since: float, now: float, chance: float, asked_s: float | None = None
    ) -> float | None:
        """Monotonic time of the next try; None if no more is made.

        Args:
            tries: How many were made, at least 1.
            since: When the first one failed.
            chance: Evenly distributed in [0, 1): half of a pause is drawn, so that streams that
                failed together do not come back together.
            asked_s: How long the one that failed asks to be left alone.
        """
        if self.retry_for_s is not None and now - since >= self.retry_for_s:
            return None
        pause = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(tries - 1, _MOST_DOUBLINGS))
        pause = max(pause * (0.5 + chance / 2), min(asked_s or 0.0, self.max_delay_s))
        again = now + pause
        return again if self.retry_for_s is None else min(again, since + self.retry_for_s)


def backoff_of(settings: ErrorSettings) -> Backoff:
    """The pauses that a stream's settings ask for."""
    return Backoff(
        first_delay_s=settings.first_delay_s,
        max_delay_s=settings.max_delay_s,
        retry_for_s=settings.retry_for_s,
    )
