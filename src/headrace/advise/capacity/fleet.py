"""How many replicas does a rate need, so that the SLO is met? Pure.

Never fewer for more load, nor for a tighter SLO: how much one replica takes is found first, for a
few sizes of fleet, and the count follows from it.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from headrace.advise.capacity.queue import (
    ENDLESS,
    Answered,
    Balancing,
    Load,
    answered,
    has_choice,
)
from headrace.advise.capacity.service import ServiceCurve
from headrace.autoscale.capacity import MAX_UTILISATION
from headrace.core import FailedPreconditionError

QUANTILE: Final = 0.99
_SIZES: Final = (1, 2, 4, 8, 16, ENDLESS)
_ROUNDING: Final = 1e-12
_STEPS: Final = 10
_LEAST: Final = 0.02
"""Of the capacity: an SLO that is missed even then leaves no room for anybody to wait."""


class SloUnreachableError(FailedPreconditionError):
    """No number of replicas answers in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What is promised, and to what kind of traffic.

    `p99_s`: None for no limit but how busy replicas may be. `burstiness`: variance over mean of
    counts; 1 is chance. `most_busy_ratio`: of a replica's capacity.
    """

    p99_s: float | None = None
    burstiness: float = 1.0
    gateways: int = 2
    balancing: Balancing = Balancing.LEAST_REQUEST
    most_busy_ratio: float = MAX_UTILISATION


@dataclass(slots=True)
class Fleet:
    """Counts of replicas of one kind. `_within`: what is known, by size of the fleet."""

    curve: ServiceCurve
    promise: Promise
    _within: dict[int, float] = field(default_factory=dict)

    def copies_for(self, rate: float) -> int:
        """The fewest replicas that answer `rate` requests a second in time; 1 for none at all.

        Raises:
            SloUnreachableError: No number of them does.
        """
        self.check()
        least = rate / (self.curve.capacity * self.promise.most_busy_ratio)
        sizes = self._sizes()
        first = max(size for size in sizes if size <= max(least, 1.0))
        best = self._with(rate, first)
        for size in sizes:
            if first < size < best:  # the larger the fleet, the more each may get
                best = min(best, self._with(rate, size))
        return best

    def _with(self, rate: float, size: int) -> int:
        return max(size, math.ceil(rate / self.rate_within(size) * (1.0 - _ROUNDING)))

    def rate_within(self, size: int) -> float:
        """What each of at least `size` replicas may get, in requests a second."""
        if size not in self._within:
            self._within[size] = self._search(size)
        return self._within[size]

    def at(self, rate: float, copies: int) -> Answered | None:
        """How so many replicas answer that rate; None if they cannot keep up."""
        promise = self.promise
        load = Load(
            rate=rate,
            copies=copies,
            gateways=promise.gateways,
            balancing=promise.balancing,
            burstiness=promise.burstiness,
        )
        return answered(self.curve, load)

    def check(self) -> None:
        """Refuse what no number of replicas gives.

        Raises:
            SloUnreachableError: The message says why, and what would help.
        """
        limit_s = self.promise.p99_s
        if limit_s is None:
            return
        alone = self.at(0.0, 1)
        assert alone is not None, "one request can be answered"
        alone_s = alone.quantile_s(QUANTILE)
        if alone_s > limit_s:
            msg = (
                f"a request that never waits already takes {_time(alone_s)} at p99, more than the "
                f"{_time(limit_s)} that are promised: no number of replicas changes that. Make the "
                "model faster (`headrace optimize`, a faster node type, more threads inside a run) "
                f"or promise --p99 {_time(1.5 * alone_s).replace(' ', '')}"
            )
            raise SloUnreachableError(msg)
        if not self._holds(self.curve.capacity * _LEAST, ENDLESS):
            msg = (
                f"the SLO of {_time(limit_s)} is so near to the {_time(alone_s)} of a request that "
                "never waits that replicas would have to be idle for 98 % of the time; promise "
                f"--p99 {_time(1.5 * alone_s).replace(' ', '')}, or make the model faster"
            )
            raise SloUnreachableError(msg)

    def _sizes(self) -> tuple[int, ...]:
        """One is enough where nobody chooses."""
        return _SIZES if has_choice(self.curve, self.promise.balancing) else (1,)

    def _search(self, size: int) -> float:
        """By bisection over the same points whatever the SLO, so that a tighter one gives less."""
        capacity = self.curve.capacity
        low, high = _LEAST, self.promise.most_busy_ratio
        if self._holds(capacity * high, size):
            return capacity * high
        for _ in range(_STEPS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if self._holds(capacity * middle, size) else (low, middle)
        return capacity * low

    def _holds(self, each: float, size: int) -> bool:
        if self.promise.p99_s is None:
            return True
        found = self.at(each * size, size)
        return found is not None and found.quantile_s(QUANTILE) <= self.promise.p99_s


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"
