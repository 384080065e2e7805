"""When a failed request is worth another try, and after which pause."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from headrace.core import HeadraceError, OverloadedError, UnavailableError

_NOT_STARTED: Final = (UnavailableError, OverloadedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently a client tries again.

    `max_attempts` counts the first try; 1 never retries. Pauses are drawn evenly between 0 and
    `base_delay_s`, doubled with each try up to `max_delay_s` (full jitter), so that callers who
    failed together do not come back together. A server that asks for a longer pause than
    `max_retry_after_s` is not waited for.

    `budget_ratio`: retries per request, over time, that a client may add to an overloaded server's
    load; `budget_reserve`: retries it may spend before it has earned any.
    """

    max_attempts: int = 4
    base_delay_s: float = 0.05
    max_delay_s: float = 2.0
    max_retry_after_s: float = 30.0
    budget_ratio: float = 0.2
    budget_reserve: float = 10.0


NO_RETRIES: Final = RetryPolicy(max_attempts=1)


@dataclass(slots=True)
class RetryBudget:
    """Retries in the bank: each request adds `ratio`, each retry costs 1. Thread-safe."""

    ratio: float
    reserve: float
    tokens: float = field(init=False)
    _lock: Lock = field(init=False, default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        self.tokens = self.reserve

    def earn(self) -> None:
        """Count a request's first try."""
        with self._lock:
            self.tokens = min(self.tokens + self.ratio, max(self.reserve, 1.0))

    def spend(self) -> bool:
        """Take one retry out of the bank; False if there is none."""
        with self._lock:
            if self.tokens < 1:
                return False
            self.tokens -= 1
            return True


def retry_delay_s(
    policy: RetryPolicy,
    error: HeadraceError,
    *,
    tries: int,
    remaining_s: float | None,
    chance: float,
) -> float | None:
    """Seconds to pause before the next try; None if `error` is final.

    Only what says that the request was not started is tried again: unavailable and overloaded. A
    try that could not start before the deadline is not made.

    Args:
        tries: How many were made, at least 1.
        remaining_s: Until the deadline; None without one.
        chance: Evenly distributed in [0, 1).
    """
    if tries >= policy.max_attempts or not isinstance(error, _NOT_STARTED):
        return None
    asked = error.retry_after_s or 0.0
    if asked > policy.max_retry_after_s:
        return None
    # The exponent is bounded, or a patient policy overflows a float.
    ceiling = min(policy.max_delay_s, policy.base_delay_s * 2.0 ** min(tries - 1, 32))
    delay = asked + chance * ceiling
    if remaining_s is not None and delay >= remaining_s:
        return None
    return delay
