"""Departure times of requests, decided before the first one so that no answer changes them.

In a closed loop, where a client sends again when it was answered, a server that stalls also stops
the requests that would have found it stalled (Schroeder, Wierman and Harchol-Balter, "Open versus
closed", NSDI 2006; what Gil Tene calls coordinated omission). Here arrivals are a Poisson process,
as of many callers who do not know of each other, and latency counts from the intended time.
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
"""What one run keeps in memory: about 200 MB with the figures made of it."""
MAX_CONNECTIONS: Final = 20_000
MAX_TIMEOUT_S: Final = 600.0


class ArrivalProcess(StrEnum):
    """How requests are spread over time."""

    POISSON = "poisson"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What is sent, and for how long.

    Attributes:
        rate_per_s: Requests per second, on average.
        seconds: How long is measured.
        warm_up_s: How long is sent before that, at the same rate.
        arrivals: How the requests are spread.
        seed: The same gives the same intended times.
        connections: At most so many are open at once.
        timeout_s: From the intended time; a request that is not answered by then has failed.
        max_requests: More are not sent; a plan that needs more is refused.
    """

    rate_per_s: float
    seconds: float = 10.0
    warm_up_s: float = 2.0
    arrivals: ArrivalProcess = ArrivalProcess.POISSON
    seed: int = 1
    connections: int = 1000
    timeout_s: float = 10.0
    max_requests: int = MAX_REQUESTS

    @property
    def total_s(self) -> float:
        """How long is sent in all."""
        return self.warm_up_s + self.seconds


def check_plan(plan: LoadPlan) -> LoadPlan:
    """`plan`, if it can be carried out.

    Raises:
        InvalidArgumentError: A number is out of bounds; the message says which and why.
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
    most = min(plan.max_requests, MAX_REQUESTS)
    expected = plan.rate_per_s * plan.total_s
    if expected > most:
        msg = (
            f"{plan.rate_per_s:g} requests per second for {plan.total_s:g} s are "
            f"{expected:,.0f}, more than the limit of {most:,}: lower the rate or measure for "
            f"less than {most / plan.rate_per_s:,.0f} s in all"
        )
        raise InvalidArgumentError(msg)
    return plan


def _within(what: str, number: float, most: float, unit: str) -> None:
    if not 0 < number <= most:  # also refuses what is not a number
        msg = f"{what} must be above 0 and at most {most:,.0f} {unit}, not {number:g}"
        raise InvalidArgumentError(msg)


def intended_times(plan: LoadPlan) -> Floats:
    """When each request is to leave, in seconds from the start; ascending, all before the end."""
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
