"""Prediction of a replica's capacity and latency from measured run times.

Each round saw all cells in one phase of the machine. Differences between rounds that all cells
share are the machine's; differences in one cell are noise.
"""

import heapq
import math
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec
import numpy as np

from headrace.core import Array
from headrace.engine import ServiceTimes
from headrace.engine.engine import INLINE_LIMIT_ALONE_S, INLINE_LIMIT_S
from headrace.optimize.profiling.messages import GridCell

MIN_ROUNDS: Final = 4
"""Least rounds for an estimate of the drift."""
_STRETCHES: Final = MIN_ROUNDS
_STUDENT: Final = 3.182
"""Student's t at 97.5 % for `_STRETCHES - 1` degrees of freedom."""
_STUDENT_MANY: Final = 2.0
"""Approximate Student's t for all rounds."""
_LARGEST: Final = math.log(10.0)
_MIN_FACTOR: Final = 0.1
_NORMAL: Final = 1.4826
"""Standard deviation over the median absolute deviation of a normal distribution."""
_MEDIAN: Final = 1.57
"""Variance of the median over that of the mean of normal values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Speed phases of the machine, repeated cyclically."""

    factors: tuple[float, ...]
    """Run time in each phase over the mean."""
    each_s: float
    """Duration of a phase, in seconds."""
    next_ratio: float = 1.0
    """Bound of the run time ratio between two such periods, in 95 of 100 cases."""

    @property
    def speed(self) -> float:
        """Throughput over all phases, relative to a factor of one."""
        return float(np.mean(1.0 / np.asarray(self.factors)))

    def times(self, factor: float, *, swing: float = 1.0) -> "Phases":
        """Return phases of a machine `factor` times slower that varies `swing` times as much."""
        varied = [max(1.0 + (factor - 1.0) * swing, _MIN_FACTOR) for factor in self.factors]
        return replace(self, factors=tuple(value * factor for value in varied))

    @property
    def spread_ratio(self) -> float:
        """Standard deviation of the factors."""
        return float(np.std(self.factors))


def find_phases(cells: Iterable[GridCell]) -> Phases | None:
    """Estimate the phases from cells of the same rounds; None with too few rounds."""
    in_rounds = [cell for cell in cells if len(cell.rounds) >= MIN_ROUNDS]
    if not in_rounds:
        return None
    # The mean of each round over the mean of all, `[cells, rounds]`.
    minimum = min(len(cell.rounds) for cell in in_rounds)
    times = np.array([[entry.mean_s for entry in cell.rounds[:minimum]] for cell in in_rounds])
    times /= times.mean(axis=1, keepdims=True)
    factors: Array = np.median(times, axis=0)  # a delayed run is not a phase of the machine
    factors = factors / factors.mean()
    # Student's interval of the means of a few stretches; the difference of two periods has twice
    # their variance.
    logs = np.log(factors)
    means = [float(part.mean()) for part in np.array_split(logs, _STRETCHES)]
    error = _STUDENT * float(np.std(means, ddof=1)) / math.sqrt(_STRETCHES)
    independent = _STUDENT_MANY * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    next_ratio = math.exp(min(max(error, independent) * math.sqrt(2.0), _LARGEST))
    varies = float(factors.var(ddof=1))
    if len(in_rounds) > 1 and varies > 0.0:
        # Differences between cells of one round are chance, some of which remains in their median.
        deviations = np.abs(times / factors - 1.0)
        chance = (_NORMAL * float(np.median(deviations))) ** 2 * _MEDIAN / (len(in_rounds) - 1)
        factors = 1.0 + (factors - 1.0) * max(1.0 - chance / varies, 0.0) ** 0.5
    began_s = [entry.at_s for entry in in_rounds[0].rounds]
    return Phases(
        factors=tuple(float(factor) for factor in factors),
        each_s=max(float(np.median(np.diff(began_s))), 1e-3),
        next_ratio=next_ratio,
    )


def without_drift(cell: GridCell, phases: Phases | None) -> GridCell:
    """Return the cell without the variation between phases."""
    if phases is None or not cell.rounds:
        return cell
    samples = np.asarray(cell.samples_s)
    whole = float(samples.var()) / cell.mean_s**2
    share = max(1.0 - phases.spread_ratio**2 / whole, 0.0) ** 0.5 if whole > 0.0 else 1.0
    steady = cell.mean_s + (samples - cell.mean_s) * share
    return msgspec.structs.replace(cell, samples_s=tuple(float(sample) for sample in steady))


_DRAWS: Final = 1 << 14


class RunTimes(Protocol):
    """Source of run times."""

    def run_s(self, rows: int, busy: int, idle_s: float) -> float:
        """Return the seconds of a run of `rows`, with `busy` runs in progress.

        `idle_s` is the idle time before it; 0 if a run preceded immediately.
        """


class MeasuredService:
    """Run times drawn from cells of one length and thread count.

    Means are interpolated linearly between two measured batch sizes, and the spread is that of the
    nearer one; beyond the largest, time grows with rows. Measured pauses are interpolated likewise;
    a longer pause counts like the longest. Seeded: the draws are reproducible.
    """

    def __init__(self, cells: Iterable[GridCell], *, seed: int) -> None:
        cells = sorted(cells, key=lambda cell: cell.rows)
        assert cells, "nothing was measured"
        self._cells = {
            runs: [cell for cell in cells if cell.runs == runs]
            for runs in sorted({cell.runs for cell in cells})
        }
        self._tables: dict[tuple[int, int], tuple[float, tuple[float, ...]]] = {}
        # Cells of the smallest batch, with which an idle replica starts.
        idled = next((cell for cell in cells if cell.paused and cell.runs == 1), None)
        paused = sorted(idled.paused, key=lambda group: group.pause_s) if idled else []
        self._pauses_s = [group.pause_s for group in paused]
        self._pause_ratios = [group.mean_s / idled.mean_s for group in paused if idled]
        self._pause_spreads = [_spread(group.samples_s, group.mean_s) for group in paused]
        rng = random.Random(seed)  # noqa: S311  # a simulation
        self._draws = [rng.random() for _ in range(_DRAWS)]
        self._next = 0

    def mean_s(self, rows: int, busy: int) -> float:
        """Return the mean of `run_s`."""
        return self._table(rows, busy)[0]

    def run_s(self, rows: int, busy: int, idle_s: float = 0.0) -> float:
        """Return the seconds of a run of `rows`, with `busy` runs in progress."""
        mean, spread = self._table(rows, busy)
        if idle_s > 0.0 and busy == 1 and self._pauses_s:
            ratio, spread = self._after(idle_s)
            mean *= ratio
        self._next = index = (self._next + 1) % _DRAWS
        return mean * spread[int(self._draws[index] * len(spread))]

    def _table(self, rows: int, busy: int) -> tuple[float, tuple[float, ...]]:
        """Return the cached mean and spread."""
        key = (rows, busy)
        if key not in self._tables:
            runs = next((runs for runs in self._cells if runs >= busy), max(self._cells))
            cells = self._cells[runs]
            largest = cells[-1]
            mean = largest.mean_s * rows / largest.rows
            if rows < largest.rows:
                sizes, means = zip(*((cell.rows, cell.mean_s) for cell in cells), strict=True)
                mean = float(np.interp(rows, sizes, means))
            nearest = min(cells, key=lambda cell: abs(cell.rows - rows))
            self._tables[key] = mean, _spread(nearest.samples_s, nearest.mean_s)
        return self._tables[key]

    def _after(self, idle_s: float) -> tuple[float, tuple[float, ...]]:
        """Return the slowdown of a run after a pause, and its spread."""
        lengths, ratios = self._pauses_s, self._pause_ratios
        above = bisect_left(lengths, idle_s)
        if above == len(lengths):
            return ratios[-1], self._pause_spreads[-1]
        low_s, low = (lengths[above - 1], ratios[above - 1]) if above else (0.0, 1.0)
        share = (idle_s - low_s) / (lengths[above] - low_s)
        nearest = above if share >= 0.5 or not above else above - 1  # noqa: PLR2004  # the nearer one
        return low + share * (ratios[above] - low), self._pause_spreads[nearest]


def _spread(samples_s: Sequence[float], mean_s: float) -> tuple[float, ...]:
    return tuple(sample / mean_s for sample in samples_s)


_SKIPPED: Final = 0.05
"""Share of the first requests to skip, as the queue starts empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """Simulation parameters of a replica."""

    max_batch_size: int
    max_runs: int
    wake_s: float = 0.0
    """Event loop CPU time per wake-up, in seconds."""
    cpu_s: float = 0.0
    """Event loop CPU time per request, in seconds."""
    fixed_s: float = 0.0
    """Other latency per request, such as the kernel's."""
    may_inline: bool = True
    """Whether short runs happen on the event loop."""
    spread: tuple[float, ...] = ()
    """Equally likely factors of these times; empty for constant times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOutcome:
    """Result of a simulation."""

    latency_s: Array
    """Latency of each counted request, in order of arrival."""
    busy_ratio: float
    """Utilization of the run slots."""
    batch_rows: float
    """Mean rows per batch."""
    makespan_s: float
    """Seconds from the first arrival to the last response."""

    def quantile_s(self, ratio: float) -> float:
        """Return the latency quantile."""
        return float(np.quantile(self.latency_s, ratio))


def poisson(count: int, rate: float, *, seed: int) -> Array:
    """Return `count` Poisson arrival times at `rate` per second."""
    gaps: Array = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return np.cumsum(gaps)


def simulate(
    replica: ReplicaModel,
    service: RunTimes,
    arrivals: Sequence[float] | Array,
    *,
    seed: int = 1,
    phases: Phases | None = None,
) -> SimulationOutcome:
    """Simulate a replica that serves requests of one row at ascending arrival times.

    Args:
        seed: Seed of the overhead's variation; `service` draws the runs.
        phases: Phases of the machine; None for constant speed.
    """
    times = ServiceTimes(max_batch_size=replica.max_batch_size)
    for power in range(replica.max_batch_size.bit_length()):  # a replica's warm-up does the same
        rows = 1 << power
        times.observe(rows=rows, length=1, seconds=service.run_s(rows, 1, 0.0))
    limit_s = INLINE_LIMIT_S if replica.max_runs > 1 else INLINE_LIMIT_ALONE_S
    factors, each_s = (phases.factors, phases.each_s) if phases else ((1.0,), math.inf)
    arrived = [float(arrived_s) for arrived_s in arrivals]
    count = len(arrived)
    varies, fixed_s = _drawn(replica, count, seed=seed)
    latency: list[float] = []
    free = [0.0] * replica.max_runs
    loop_free = busy_s = end = last_end = 0.0
    head = batches = 0
    while head < count:
        start = max(arrived[head], free[0], loop_free)
        maximum = times.best_rows(1)
        rows = 1
        while rows < maximum and head + rows < count and arrived[head + rows] <= start:
            rows += 1
        busy = 1 if replica.max_runs == 1 else 1 + sum(free_s > start for free_s in free)
        factor = factors[int(start / each_s) % len(factors)]
        run_s = factor * service.run_s(rows, busy, max(start - last_end, 0.0))
        estimate_s = times.estimate(rows=rows, length=1) or 0.0
        is_inline = replica.may_inline and estimate_s < limit_s
        # A loop that has just run a batch does not sleep before the next; one that waited for a
        # thread or a request does.
        wake_s = 0.0 if is_inline and arrived[head] < loop_free else replica.wake_s
        end = start + run_s + factor * (wake_s + rows * replica.cpu_s) * varies[batches]
        last_end = max(last_end, end)
        if is_inline:
            loop_free = end
        else:
            heapq.heapreplace(free, end)
        times.observe(rows=rows, length=1, seconds=run_s)
        latency += [end - arrived_s for arrived_s in arrived[head : head + rows]]
        busy_s += end - start
        head += rows
        batches += 1
    makespan = max(end, *free, loop_free) - arrived[0]
    return SimulationOutcome(
        latency_s=(np.asarray(latency) + fixed_s)[int(count * _SKIPPED) :],
        busy_ratio=min(busy_s / makespan / replica.max_runs, 1.0),
        batch_rows=count / batches,
        makespan_s=makespan,
    )


def _drawn(replica: ReplicaModel, count: int, *, seed: int) -> tuple[list[float], Array | float]:
    """Draw the event loop's factor per batch, and the fixed latency per request."""
    if not replica.spread:
        return [1.0] * count, replica.fixed_s
    rng = np.random.default_rng(seed)
    spread = np.asarray(replica.spread)
    varies: list[float] = rng.choice(spread, count).tolist()
    return varies, replica.fixed_s * rng.choice(spread, count)


USUAL_LOAD: Final = 0.7
"""Default load of a replica as a share of its capacity."""
SHARES: Final = (0.1, 0.3, 0.5, 0.6, USUAL_LOAD, 0.8, 0.9, 0.95)
"""Loads, as shares of the capacity, at which latency is predicted."""
KNEE: Final = 3.0
"""Default knee: the load at which p99 exceeds this multiple of an idle replica's p50."""
REQUESTS: Final = 30_000
"""Simulated requests per load."""
_SURELY: Final = 3
"""Multiple of `REQUESTS` for precise points: 30,000 leave 4 % error in the p99 at 70 % load."""
_SEED: Final = 304
"""The one of the first 400 seeds whose arrivals give a single server with constant runs (M/D/1) its
long-run latency: at loads from 50 to 80 % its p99 is off by 2 %, that of other seeds by up to 10.
"""
_ROUGHLY: Final = 6_000
_FEW: Final = 10_000
_STEPS: Final = 8
_NEARLY: Final = 0.98
NewService = Callable[[int], RunTimes]
"""Returns run times for a seed."""
Interval = tuple[float, float]
"""Lower and upper bound."""


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Prediction at `rate` requests per second, which is `load_ratio` of the capacity."""

    load_ratio: float
    rate: float
    p50_s: float
    p95_s: float
    p99_s: float
    p999_s: float
    busy_ratio: float
    batch_rows: float
    p99_ci_s: Interval | None = None
    """Interval of the p99 in 95 of 100 periods as long as the measurement; None if unknown."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted capacity and latency of one replica. Rates are requests of one row per second."""

    capacity: float
    """Highest sustainable rate."""
    knee_rate: float | None
    """Rate at which p99 reaches `knee_p99_s`; None if it always exceeds it."""
    knee_p99_s: float
    curve: tuple[LoadPoint, ...]
    """Points by load, ascending."""
    capacity_ci: Interval | None = None
    """Interval of the capacity; None with too few rounds."""
    drift_ratio: float | None = None
    """Standard deviation of the machine's speed between rounds; None with too few rounds."""

    def point_near(self, load_ratio: float) -> LoadPoint:
        """Return the curve's point nearest to this load."""
        return min(self.curve, key=lambda point: abs(point.load_ratio - load_ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """Deterministic predictor of one replica."""

    replica: ReplicaModel
    service: NewService
    seed: int = _SEED
    requests: int = REQUESTS
    phases: Phases | None = None
    """Phases of the machine; None for constant speed."""

    def predict(self, *, p99_s: float | None = None) -> Prediction:
        """Predict capacity, knee and latency by load.

        Args:
            p99_s: p99 at the knee; None for a multiple of an idle replica's p50.
        """
        capacity = self.capacity()
        deterministic = self.surely()
        curve = tuple(
            (deterministic if share == USUAL_LOAD else self).point(share * capacity, capacity)
            for share in SHARES
        )
        limit_s = p99_s if p99_s is not None else KNEE * curve[0].p50_s
        return Prediction(
            capacity=capacity,
            knee_rate=self.rate_within(limit_s, capacity=capacity),
            knee_p99_s=limit_s,
            curve=curve,
        )

    def capacity(self) -> float:
        """Return the throughput under saturation, over all phases."""
        at_once = np.zeros(min(self.requests, _FEW))
        outcome = simulate(self.replica, self.service(self.seed), at_once)
        return len(at_once) / outcome.makespan_s * (self.phases.speed if self.phases else 1.0)

    def point(self, rate: float, capacity: float) -> LoadPoint:
        """Predict the latency at one rate."""
        outcome = self.outcome(rate)
        p50, p95, p99, p999 = np.quantile(outcome.latency_s, (0.5, 0.95, 0.99, 0.999))
        return LoadPoint(
            load_ratio=rate / capacity,
            rate=rate,
            p50_s=float(p50),
            p95_s=float(p95),
            p99_s=float(p99),
            p999_s=float(p999),
            busy_ratio=outcome.busy_ratio,
            batch_rows=outcome.batch_rows,
        )

    def outcome(self, rate: float) -> SimulationOutcome:
        """Simulate Poisson requests at this rate."""
        return self._run(poisson(self.requests, rate, seed=self.seed))

    def surely(self) -> "Predictor":
        """Return a predictor with more simulated requests."""
        return replace(self, requests=self.requests * _SURELY)

    def roughly(self) -> "Predictor":
        """Return a predictor with few simulated requests, for relative comparisons."""
        return replace(self, requests=min(self.requests, _ROUGHLY))

    def rate_within(self, p99_s: float, *, capacity: float) -> float | None:
        """Return the highest rate at which p99 stays within the limit; None if it never does.

        By bisection: all rates use the same random arrivals, scaled in time.
        """
        gaps = np.diff(poisson(min(self.requests, _FEW), 1.0, seed=self.seed), prepend=0.0)

        def holds(rate: float) -> bool:
            return self._run(np.cumsum(gaps / rate)).quantile_s(0.99) <= p99_s

        low, high = 0.01 * capacity, _NEARLY * capacity
        if not holds(low):
            return None
        if holds(high):
            return high
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def _run(self, arrivals: Array) -> SimulationOutcome:
        phases = self.phases
        if phases is not None:  # any number of requests per second covers all phases
            whole_s = float(arrivals[-1]) / len(phases.factors)
            phases = replace(phases, each_s=min(phases.each_s, whole_s))
        return simulate(self.replica, self.service(self.seed), arrivals, phases=phases)
