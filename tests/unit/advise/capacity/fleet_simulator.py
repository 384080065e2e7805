"""Many replicas that batch, behind balancers that choose of two, in virtual time. Slow and obvious.

Each replica follows `headrace.optimize.profiling.simulate`, the simulator of one: what waits when a
run may start shares it, up to the batch that the engine's own `ServiceTimes` has learned to be
worth it. Each of `gateways` balancers sees its own requests only, as each Envoy does.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from headrace.advise.capacity.service import ServiceCurve
from headrace.core import Array
from headrace.engine import ServiceTimes


class DrawnService:
    """Run times of a curve, log-normal around its means, for `profiling.simulate`."""

    def __init__(self, curve: ServiceCurve, *, cv: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sigma = float(np.sqrt(np.log1p(cv * cv)))
        self._ratios: list[float] = rng.lognormal(-sigma * sigma / 2.0, sigma, 1 << 16).tolist()
        self._curve = curve
        self._means = [curve.run_s(rows) for rows in range(1, curve.max_rows + 1)]
        self._next = 0

    def run_s(self, rows: int, busy: int = 1, idle_s: float = 0.0) -> float:
        del busy, idle_s
        self._next = (self._next + 1) % len(self._ratios)
        return self._means[rows - 1] * self._ratios[self._next]


@dataclass(slots=True)
class _Replica:
    times: ServiceTimes
    free: int
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    in_flight: list[int] = field(default_factory=list)


def serve(
    curve: ServiceCurve,
    *,
    rate: float,
    copies: int,
    cv: float = 0.0,
    requests: int = 60_000,
    gateways: int = 1,
    choices: int = 2,
    seed: int = 1,
) -> Array:
    """The latency of each request in order of its answer, the first twentieth left out."""
    service = DrawnService(curve, cv=cv, seed=seed)
    draw = random.Random(seed)  # noqa: S311  # a simulation
    arrivals = np.random.default_rng(seed).exponential(1.0 / rate, requests).cumsum().tolist()
    fleet = [
        _Replica(_warm(curve, service), curve.places, in_flight=[0] * gateways)
        for _ in range(copies)
    ]
    ends: list[tuple[float, int, list[tuple[float, int]]]] = []
    latency: list[float] = []

    def begin(now: float, index: int) -> None:
        replica = fleet[index]
        while replica.free and replica.waiting:
            rows = min(len(replica.waiting), replica.times.best_rows(1))
            batch = [replica.waiting.popleft() for _ in range(rows)]
            run_s = service.run_s(rows)
            replica.times.observe(rows=rows, length=1, seconds=run_s)
            replica.free -= 1
            heapq.heappush(ends, (now + run_s, index, batch))

    def finish(until: float) -> None:
        while ends and ends[0][0] <= until:
            end, index, batch = heapq.heappop(ends)
            for at, gateway in batch:
                latency.append(end - at)
                fleet[index].in_flight[gateway] -= 1
            fleet[index].free += 1
            begin(end, index)

    for at in arrivals:
        finish(at)
        gateway = draw.randrange(gateways)
        drawn = [draw.randrange(copies) for _ in range(choices)]
        index = min(drawn, key=lambda one: fleet[one].in_flight[gateway])  # the first of equals
        fleet[index].in_flight[gateway] += 1
        fleet[index].waiting.append((at, gateway))
        begin(at, index)
    finish(float("inf"))
    return np.asarray(latency)[requests // 20 :]


def _warm(curve: ServiceCurve, service: DrawnService) -> ServiceTimes:
    times = ServiceTimes(max_batch_size=curve.max_rows)
    rows = 1
    while rows <= curve.max_rows:  # as the warm-up does
        times.observe(rows=rows, length=1, seconds=service.run_s(rows))
        rows *= 2
    return times
