"""Seeded queueing model of replicas behind the autoscaler: what each policy does to the callers.

Requests come by chance at the trace's rate. Each goes to the less loaded of two ready copies drawn
at random, as Envoy's least-request balancer does, and waits there for a free run. Copies start
late, are slow at first, and finish what they have before they end. All policies see the same
requests.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.autoscale.decide import decide
from headrace.autoscale.demand import late_ratio
from headrace.autoscale.meter import IntervalCounts, Meter
from headrace.autoscale.state import ScalerState, Signals, begin
from headrace.core.spec.scale import AutoscaleSpec
from headrace.observe.histogram import SECONDS_BOUNDS

_HOUR_S: Final = 3600.0
_LATE_RATIO: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A load and the copies that carry it.

    `rates`: requests per second, one value per second. `lost`: seconds, from and to, in which no
    metric arrives. `start_s`: from a copy's start until it is ready; for `warm_s` after that it
    takes `warm_ratio` times as long. `service_s` is the mean run, `service_cv` its coefficient of
    variation. `max_queue`: requests in one copy; more are refused.
    """

    name: str
    about: str
    rates: npt.NDArray[np.float64]
    lost: tuple[tuple[int, int], ...] = ()
    start_s: float = 3.0
    warm_s: float = 2.0
    warm_ratio: float = 1.5
    service_s: float = 0.1
    service_cv: float = 0.3
    concurrency: int = 1
    max_queue: int = 64
    slo_latency_s: float = 0.5
    max_replicas: int = 16

    @property
    def seconds(self) -> int:
        """How long it takes."""
        return len(self.rates)

    def is_lost(self, second: float) -> bool:
        """Whether metrics are lost in this second."""
        return any(begin <= second < end for begin, end in self.lost)


def steady() -> Trace:
    """The same load for half an hour: any change of the count is for nothing."""
    return Trace(name="steady", about="35 requests/s", rates=np.full(1800, 35.0))


def flash_crowd() -> Trace:
    """Ten times the load within ten seconds, which then ebbs away."""
    seconds = np.arange(1800.0)
    ramp = np.clip((seconds - 600.0) / 10.0, 0.0, 1.0)
    ebb = np.exp(-np.maximum(seconds - 900.0, 0.0) / 180.0)
    about = "8 requests/s, from 600 s on 80, ebbing from 900 s on"
    return Trace(name="flash-crowd", about=about, rates=8.0 + 72.0 * ramp * ebb)


def diurnal() -> Trace:
    """Two days in an hour."""
    seconds = np.arange(3600.0)
    rates = 37.0 - 32.0 * np.cos(2.0 * math.pi * seconds / 1800.0)
    return Trace(name="diurnal", about="5 to 69 requests/s and back, twice", rates=rates)


def on_off() -> Trace:
    """Two minutes of work, three of nearly none."""
    seconds = np.arange(1800.0)
    about = "60 requests/s for 2 minutes, then 3 for 3 minutes"
    return Trace(name="on-off", about=about, rates=np.where(seconds % 300.0 < 120.0, 60.0, 3.0))


def lost_metrics() -> Trace:
    """A steady load whose metrics are lost for minutes, once while it grows."""
    seconds = np.arange(1800.0)
    return Trace(
        name="lost-metrics",
        about="35 requests/s, from 1000 s on 50; no metrics from 400 to 700 and 990 to 1020 s",
        rates=np.where(seconds < 1000.0, 35.0, 50.0),
        lost=((400, 700), (990, 1020)),
    )


def slow_start() -> Trace:
    """Copies that take most of a minute to start, when the load has already grown fivefold."""
    seconds = np.arange(1800.0)
    return Trace(
        name="slow-start",
        about="10 requests/s, from 300 s on 50; a copy starts for 45 s and is slow for 10 s",
        rates=np.where(seconds < 300.0, 10.0, 50.0),
        start_s=45.0,
        warm_s=10.0,
        warm_ratio=2.0,
    )


TRACES: Final = {
    "steady": steady,
    "flash-crowd": flash_crowd,
    "diurnal": diurnal,
    "on-off": on_off,
    "lost-metrics": lost_metrics,
    "slow-start": slow_start,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a policy sees each second; `cpu` is the busy part (0 to 1) of the ready copies."""

    second: int
    current: int
    signals: Signals
    cpu: float | None


class Policy(Protocol):
    """Names a count each second."""

    name: str

    def count(self, view: View) -> int:
        """How many copies from now on."""


@dataclass(slots=True)
class Headrace:
    """`decide`, as the control plane uses it."""

    settings: AutoscaleSpec
    name: str = "headrace"
    state: ScalerState | None = None

    def count(self, view: View) -> int:
        """How many copies from now on."""
        now = float(view.second)
        state = begin(view.current, now=now) if self.state is None else self.state
        decision = decide(state, view.signals, self.settings, now=now)
        self.state = decision.state
        return decision.replicas


@dataclass(slots=True)
class CpuTarget:
    """Kubernetes' HorizontalPodAutoscaler on CPU with its defaults, as documented for v2.

    Each 15 s: ready copies x busy / 0.7; within a tenth of the target nothing happens; up by at
    most 4 or twofold per 15 s; down by the largest wish of the last 300 s. Without metrics nothing
    happens. The busy part is averaged over 30 s, as its metrics pipeline does.
    """

    max_replicas: int
    name: str = "cpu-target"
    target: float = 0.7
    _busy: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    _wishes: deque[int] = field(default_factory=lambda: deque(maxlen=20))

    def count(self, view: View) -> int:
        """How many copies from now on."""
        if view.cpu is not None:
            self._busy.append(view.cpu)
        if view.second % 15 or view.cpu is None:
            return view.current
        signals = view.signals
        busy = sum(self._busy) / len(self._busy)
        all_of_them = signals.ready + signals.starting
        ratio = busy / self.target
        if ratio > 1.0:
            # Copies that are not ready yet count as idle when the wish is to grow, and never
            # turn it into a wish to shrink.
            ratio = max(ratio * signals.ready / max(all_of_them, 1), 1.0)
        wish = view.current if abs(ratio - 1.0) <= 0.1 else math.ceil(all_of_them * ratio)
        wish = min(max(wish, 1), max(view.current + 4, 2 * view.current), self.max_replicas)
        self._wishes.append(wish)
        return max(wish, *self._wishes) if wish < view.current else wish


class Oracle:
    """Knows the future: has just enough copies ready in every second.

    Just enough: with as many servers behind one queue, at most 1 % wait longer than the SLO leaves.
    """

    name = "oracle"

    def __init__(self, trace: Trace) -> None:
        ahead = math.ceil(trace.start_s + trace.warm_s) + 1
        enough = [enough_copies(trace, float(rate)) for rate in trace.rates]
        self._counts = [max(enough[i : i + ahead + 1]) for i in range(len(enough))]

    @property
    def counts(self) -> list[int]:
        """The count of every second."""
        return self._counts

    def count(self, view: View) -> int:
        """How many copies from now on."""
        return self._counts[min(view.second, len(self._counts) - 1)]


def enough_copies(trace: Trace, rate: float) -> int:
    """The fewest copies that answer 99 % of `rate` requests/s within the SLO; at least 1."""
    slack = trace.slo_latency_s / trace.service_s - 1.0 - 2.0 * trace.service_cv
    for copies in range(1, trace.max_replicas):
        servers = copies * trace.concurrency
        utilisation = rate * trace.service_s / servers
        if utilisation >= 1.0:
            continue
        late = late_ratio(servers=servers, utilisation=utilisation, slack=slack)
        if late <= _LATE_RATIO:
            return copies
    return trace.max_replicas


def policies(trace: Trace, settings: AutoscaleSpec) -> list[Policy]:
    """All that are compared."""
    return [Oracle(trace), Headrace(settings), CpuTarget(trace.max_replicas)]


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
    settings: AutoscaleSpec | None = None,
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
        settings or AutoscaleSpec(),
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

    def __init__(self, trace: Trace, policy: Policy, load: _Load, settings: AutoscaleSpec) -> None:
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
        counts = IntervalCounts(
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
