"""A thing that counts up as the gateway does, to be looked at by a history."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from headrace.monitor import Buckets


@dataclass(slots=True)
class Counted:
    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: Buckets = field(default_factory=dict)

    def after(
        self, latencies_s: Iterable[float], *, errors: int = 0, rejections: int = 0
    ) -> "Counted":
        """The totals after requests that took so long."""
        latency = Counter(self.latency)
        taken = [envoy_bucket(seconds) for seconds in latencies_s]
        latency.update(taken)
        return Counted(
            requests=self.requests + len(taken),
            errors=self.errors + errors,
            rejections=self.rejections + rejections,
            latency=latency,
        )

    def plus(self, other: "Counted") -> "Counted":
        """The totals of both."""
        return Counted(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            rejections=self.rejections + other.rejections,
            latency=Counter(self.latency) + Counter(other.latency),
        )


def envoy_bucket(seconds: float) -> tuple[float, float]:
    """The bucket with two significant digits that Envoy counts whole microseconds in."""
    micros = max(round(seconds * 1e6), 1)
    power = 10.0 ** (math.floor(math.log10(micros)) - 1)
    lower = math.floor(micros / power + 1e-9) * power
    return round(lower * 1e-6, 9), round(power * 1e-6, 9)
