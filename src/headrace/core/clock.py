"""Clocks, passed as arguments so that tests control time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic clock and wall clock."""

    def monotonic(self) -> float:
        """Return seconds since a fixed point; never goes back."""

    def now(self) -> float:
        """Return seconds since 1970-01-01 UTC."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Return seconds since a fixed point; never goes back."""
        return time.monotonic()

    def now(self) -> float:
        """Return seconds since 1970-01-01 UTC."""
        return time.time()  # noqa: TID251  # the only code that may
