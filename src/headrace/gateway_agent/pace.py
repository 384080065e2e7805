"""How long until the next try? Longer each time, and never at the same moment as others'. Pure."""

from random import Random
from typing import Final

from headrace.control.backoff import Backoff

AWAY: Final = Backoff(first_s=0.1, limit_s=2.0)
"""A control plane that does not answer: short, because it is one connection and news wait there."""


def pause_s(failures: int, rng: Random, backoff: Backoff = AWAY) -> float:
    """Seconds to wait after the `failures`-th failure in a row: half of the delay to all of it."""
    longest = backoff.delay_s(failures)
    return longest * (0.5 + 0.5 * rng.random())
