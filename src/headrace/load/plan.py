"""Load plan: intended send times, fixed before the run so that no response changes them.

In a closed loop, where a client sends its next request after a response, a stalled server also
stops the requests that would have measured the stall (Schroeder, Wierman and Harchol-Balter, "Open
versus closed", NSDI 2006; Gil Tene's term is coordinated omission). Here arrivals are a Poisson
process, as of many independent callers, and latency counts from the intended time.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from headrace.core import InvalidArgumentError
from headrace.load.intervals import Floats

MAX_RATE_PER_S: Final = 200_000.0
MAX_SECONDS: Final = 3600.0
MAX_REQUESTS: Final = 5_000_000
"""Limit of requests in one run, which take about 200 MB of memory with their statistics."""
MAX_CONNECTIONS: Final = 20_000
MAX_TIMEOUT_S: Final = 600.0


class ArrivalProcess(StrEnum):
    """Distribution of the intended send times."""

    POISSON = "poisson"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Rate, duration and limits of one run."""

    rate_per_s: float
    """Requests per second, on average."""
    seconds: float = 10.0
    """Measured duration."""
    warm_up_s: float = 2.0
    """Duration of the warm-up, at the same rate."""
    arrivals: ArrivalProcess = ArrivalProcess.POISSON
    """Distribution of the intended send times."""
    seed: int = 1
    """Seed of the intended send times."""
    connections: int = 1000
    """Limit of open connections."""
    timeout_s: float = 10.0
    """Timeout of a request, counted from its intended send time."""
    max_requests: int = MAX_REQUESTS
    """Limit of requests; a plan that needs more is rejected."""

    @property
    def total_s(self) -> float:
        """Return the duration of warm-up and measurement."""
        return self.warm_up_s + self.seconds


def check_plan(plan: LoadPlan) -> LoadPlan:
    """Return `plan` after checking its bounds.

    Raises:
        InvalidArgumentError: A number is out of bounds; the message names it and the bound.
    """
    _within("the rate", plan.rate_per_s, MAX_RATE_PER_S, "requests per second")
    _within("the time to measure", plan.seconds, MAX_SECONDS, "seconds")
    _within("the timeout", plan.timeout_s, MAX_TIMEOUT_S, "seconds")
    if not 0 <= plan.warm_up_s <= MAX_SECONDS:
        msg = f"the warm-up must be 0 to {MAX_SECONDS:g} seconds, not {plan.warm_up_s:g}"
        raise InvalidArgumentError(msg)
    if not 1 <= plan.connections <= MAX_CONNECTIONS:
        msg = f"connections must be 1 to {MAX_CONNECTIONS}, not {plan.connections}"
        raise InvalidArgumentError(msg)
    if plan.seed < 0:
        msg = f"the seed must be 0 or more, not {plan.seed}"
        raise InvalidArgumentError(msg)
    maximum = min(plan.max_requests, MAX_REQUESTS)
    expected = plan.rate_per_s * plan.total_s
    if expected > maximum:
        msg = (
            f"{plan.rate_per_s:g} requests per second for {plan.total_s:g} s are "
            f"{expected:,.0f}, more than the limit of {maximum:,}: lower the rate or measure for "
            f"less than {maximum / plan.rate_per_s:,.0f} s in all"
        )
        raise InvalidArgumentError(msg)
    return plan


def _within(description: str, number: float, maximum: float, unit: str) -> None:
    if not 0 < number <= maximum:  # also refuses NaN
        msg = f"{description} must be above 0 and at most {maximum:,.0f} {unit}, not {number:g}"
        raise InvalidArgumentError(msg)


def intended_times(plan: LoadPlan) -> Floats:
    """Return the intended send times, in seconds from the start, ascending, all before the end."""
    if plan.arrivals is ArrivalProcess.CONSTANT:
        count = math.ceil(plan.rate_per_s * plan.total_s)
        evenly = np.arange(count, dtype=np.float64) / plan.rate_per_s
        return evenly[evenly < plan.total_s]
    rng = np.random.default_rng(plan.seed)
    expected = plan.rate_per_s * plan.total_s
    size = int(expected + 4 * math.sqrt(expected)) + 16
    times = np.cumsum(rng.exponential(1 / plan.rate_per_s, size))
    while times[-1] < plan.total_s:
        more = np.cumsum(rng.exponential(1 / plan.rate_per_s, size)) + times[-1]
        times = np.concatenate([times, more])
    return times[times < plan.total_s]
