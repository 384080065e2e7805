"""What would each policy have done to the callers, and at what cost? A seeded queueing model.

Requests come by chance at the trace's rate. Each goes to the less loaded of two ready copies drawn
at random, as Envoy's least-request balancer does, and waits there for a free run. Copies start
late, are slow at first, and finish what they have before they end. All policies see the same
requests.
"""

import heapq
import math
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.autoscale.meter import Counts, Meter
from headrace.autoscale.policies import Policy, View, enough_copies, policies
from headrace.autoscale.traces import Trace
from headrace.core.autoscale_settings import AutoscaleSettings
from headrace.observe.histogram import SECONDS_BOUNDS

_HOUR_S: Final = 3600.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one policy on one trace.

    `violation_ratio`: requests answered later than the SLO or refused, of all. `replica_hours`:
    from start to end of each copy. `changes` of the count; `direction_changes`: how often growing
    turned to shrinking or back. `replicas`: the count in every second, as decided; `ready` of them.
    """

    trace: str
    policy: str
    requests: int
    violation_ratio: float
    refused_ratio: float
    p99_s: float
    replica_hours: float
    changes: int
    direction_changes: int
    max_replicas: int
    replicas: list[int]
    ready: list[int]


def simulate(
    trace: Trace,
    settings: AutoscaleSettings | None = None,
    *,
    seed: int = 0,
    only: Collection[str] = (),
) -> list[Outcome]:
    """Every policy on `trace`.

    Args:
        settings: Headrace's; None for the defaults. Largest count and SLO are the trace's.
        only: Names of the policies to run; empty for all.
    """
    settings = msgspec.structs.replace(
        settings or AutoscaleSettings(),
        max_replicas=trace.max_replicas,
        slo_latency_s=trace.slo_latency_s,
    )
    load = _Load.of(trace, seed)
    chosen = [p for p in policies(trace, settings) if not only or p.name in only]
    return [_Run(trace, policy, load, settings).outcome() for policy in chosen]


@dataclass(frozen=True, slots=True)
class _Load:
    """When requests come, and how long each will run; `ends[i]` is the first one after second i."""

    arrivals: list[float]
    services: list[float]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, trace: Trace, seed: int) -> "_Load":
        rng = np.random.default_rng(seed)
        counts = rng.poisson(trace.rates)
        seconds = np.repeat(np.arange(len(counts), dtype=np.float64), counts)
        arrivals = np.sort(seconds + rng.random(len(seconds)))
        spread = np.log1p(trace.service_cv**2)
        services = rng.lognormal(
            np.log(trace.service_s) - spread / 2.0, np.sqrt(spread), len(arrivals)
        )
        return cls(arrivals.tolist(), services.tolist(), np.cumsum(counts))


@dataclass(slots=True)
class _Copy:
    """One copy; `work` is a heap of (end, start, arrival) of what it has not finished yet."""

    ready_at: float
    warm_until: float
    free_at: list[float]
    work: list[tuple[float, float, float]] = field(default_factory=list)

    def admit(self, arrival: float, service_s: float, trace: Trace) -> bool:
        """Take a request, unless the queue is full."""
        if len(self.work) >= trace.max_queue:
            return False
        start = max(arrival, self.free_at[0])
        end = start + service_s * (trace.warm_ratio if start < self.warm_until else 1.0)
        heapq.heapreplace(self.free_at, end)
        heapq.heappush(self.work, (end, start, arrival))
        return True


@dataclass(slots=True)
class _Second:
    """What was answered since the last look."""

    latencies: list[float] = field(default_factory=list)
    run_s: float = 0.0
    wait_s: float = 0.0

    def histogram(self) -> tuple[int, ...]:
        """Latencies by bucket of `SECONDS_BOUNDS`, with one more for what is above."""
        places = np.searchsorted(SECONDS_BOUNDS, self.latencies)
        return tuple(np.bincount(places, minlength=len(SECONDS_BOUNDS) + 1).tolist())


class _Run:
    """One policy on one trace, second by second."""

    def __init__(
        self, trace: Trace, policy: Policy, load: _Load, settings: AutoscaleSettings
    ) -> None:
        self._trace = trace
        self._policy = policy
        self._load = load
        self._settings = settings
        self._random = random.Random(1)  # noqa: S311  # a simulation
        self._copies: list[_Copy] = []
        self._leaving: list[_Copy] = []
        self._meter = Meter.new()
        self._seen = _Second()
        self._latencies: list[float] = []
        self._refused = 0
        self._copy_s = 0.0
        self._counts: list[int] = []
        self._ready: list[int] = []

    def outcome(self) -> Outcome:
        """Run it."""
        trace = self._trace
        first = enough_copies(trace, float(trace.rates[0]))
        self._copies = [self._new(-trace.start_s - trace.warm_s) for _ in range(first)]
        begin = 0
        for second in range(trace.seconds):
            end = int(self._load.ends[second])
            self._serve(begin, end)
            self._tick(second + 1, arrived=end - begin)
            begin = end
        for copy in (*self._copies, *self._leaving):
            self._finish(copy, math.inf)
        self._latencies += self._seen.latencies
        return self._summary()

    def _new(self, now: float) -> _Copy:
        trace = self._trace
        ready_at = now + trace.start_s
        return _Copy(ready_at, ready_at + trace.warm_s, [ready_at] * trace.concurrency)

    def _serve(self, begin: int, end: int) -> None:
        """Hand out the requests of one second."""
        trace, draw = self._trace, self._random.random
        arrivals, services = self._load.arrivals, self._load.services
        ready = [c for c in self._copies if c.ready_at <= len(self._counts)]
        if not ready:
            self._refused += end - begin
            return
        for index in range(begin, end):
            arrival = arrivals[index]
            one, other = ready[int(draw() * len(ready))], ready[int(draw() * len(ready))]
            for copy in (one, other):
                if copy.work and copy.work[0][0] <= arrival:
                    self._finish(copy, arrival)
            chosen = one if len(one.work) <= len(other.work) else other
            if not chosen.admit(arrival, services[index], trace):
                self._refused += 1

    def _finish(self, copy: _Copy, now: float) -> None:
        work, seen = copy.work, self._seen
        while work and work[0][0] <= now:
            end, start, arrival = heapq.heappop(work)
            seen.latencies.append(end - arrival)
            seen.run_s += end - start
            seen.wait_s += start - arrival

    def _tick(self, second: int, *, arrived: int) -> None:
        for copy in (*self._copies, *self._leaving):
            self._finish(copy, float(second))
        self._leaving = [copy for copy in self._leaving if copy.work]
        self._copy_s += len(self._copies) + len(self._leaving)
        ready = sum(copy.ready_at <= second for copy in self._copies)
        self._counts.append(len(self._copies))
        self._ready.append(ready)
        self._resize(self._policy.count(self._view(second, ready, arrived)), float(second))

    def _view(self, second: int, ready: int, arrived: int) -> View:
        trace, seen = self._trace, self._seen
        self._latencies += seen.latencies
        self._seen = _Second()
        counts = Counts(
            seconds=1.0,
            arrived=arrived,
            answered=len(seen.latencies),
            busy_s=seen.run_s / trace.concurrency,
            run_s=seen.run_s,
            wait_s=seen.wait_s,
            latencies=seen.histogram(),
            bounds_s=SECONDS_BOUNDS,
            latency_s=sum(seen.latencies),
        )
        is_lost = trace.is_lost(second)
        signals = self._meter.signals(
            None if is_lost else counts,
            self._settings,
            now=float(second),
            ready=ready,
            starting=len(self._copies) - ready,
            in_flight=None if is_lost else float(sum(len(copy.work) for copy in self._copies)),
            concurrency=trace.concurrency,
        )
        cpu = None if is_lost else min(counts.busy_s / max(ready, 1), 1.0)
        return View(second=second, current=len(self._copies), signals=signals, cpu=cpu)

    def _resize(self, count: int, now: float) -> None:
        """Start copies, or let the newest go: those that are not ready yet first."""
        self._copies += [self._new(now) for _ in range(count - len(self._copies))]
        self._leaving += self._copies[count:]
        del self._copies[count:]

    def _summary(self) -> Outcome:
        trace = self._trace
        requests = len(self._latencies) + self._refused
        late = sum(latency > trace.slo_latency_s for latency in self._latencies)
        steps = [b - a for a, b in pairwise(self._counts) if a != b]
        turns = sum((a > 0) is not (b > 0) for a, b in pairwise(steps))
        return Outcome(
            trace=trace.name,
            policy=self._policy.name,
            requests=requests,
            violation_ratio=(late + self._refused) / max(requests, 1),
            refused_ratio=self._refused / max(requests, 1),
            p99_s=float(np.quantile(self._latencies, 0.99)) if self._latencies else 0.0,
            replica_hours=self._copy_s / _HOUR_S,
            changes=len(steps),
            direction_changes=turns,
            max_replicas=max(self._counts),
            replicas=self._counts,
            ready=self._ready,
        )
