"""When would requests that come by chance be answered? A replica's queue in virtual time.

It follows the engine: requests wait in order; when a run may start, what waits is taken, up to the
batch that the engine has learned to be worth it; runs that are learned to be short happen on the
event loop, where nothing else happens meanwhile. What the event loop itself needs for a request is
part of the time of its run, as the two share the processor. All of that is slower in some phases of
the machine than in others.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array
from headrace.engine import ServiceTimes
from headrace.engine.engine import INLINE_LIMIT_ALONE_S, INLINE_LIMIT_S
from headrace.optimize.profiling.phases import Phases
from headrace.optimize.profiling.service import Service

_SKIPPED: Final = 0.05
"""Of the requests, at the beginning: the queue is empty then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """How a replica serves.

    `wake_s`, `cpu_s`: of its event loop, where it slept and for each request. `fixed_s`: what a
    caller waits besides, for instance for the kernel. `may_inline`: runs may happen on the event
    loop. `spread`: by which these vary, each value as likely as another; empty if they do not.
    """

    max_batch_size: int
    max_runs: int
    wake_s: float = 0.0
    cpu_s: float = 0.0
    fixed_s: float = 0.0
    may_inline: bool = True
    spread: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a simulation. `latency_s`: of each request that counts, in order of arrival.

    `busy_ratio`: of the places where runs happen. `batch_rows`: on average. `makespan_s`: from
    the first arrival to the last answer.
    """

    latency_s: Array
    busy_ratio: float
    batch_rows: float
    makespan_s: float

    def quantile_s(self, ratio: float) -> float:
        """The latency that this share of the requests stays below."""
        return float(np.quantile(self.latency_s, ratio))


def poisson(count: int, rate: float, *, seed: int) -> Array:
    """Times of `count` arrivals by chance, `rate` in a second on average."""
    gaps: Array = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return np.cumsum(gaps)


def simulate(
    replica: Replica,
    service: Service,
    arrivals: Sequence[float] | Array,
    *,
    seed: int = 1,
    phases: Phases | None = None,
) -> Outcome:
    """Serve requests of one row that arrive at ascending times, and see when each is answered.

    Args:
        seed: Of how the replica's own part varies; runs are drawn by `service`.
        phases: Of the machine; None for one that does not vary.
    """
    times = ServiceTimes(max_batch_size=replica.max_batch_size)
    for rows in _powers(replica.max_batch_size):  # as the warm-up does
        times.observe(rows=rows, length=1, seconds=service.run_s(rows, 1, 0.0))
    limit_s = INLINE_LIMIT_S if replica.max_runs > 1 else INLINE_LIMIT_ALONE_S
    factors, each_s = (phases.factors, phases.each_s) if phases else ((1.0,), math.inf)
    came = [float(at) for at in arrivals]
    count = len(came)
    varies, fixed_s = _drawn(replica, count, seed=seed)
    latency: list[float] = []
    free = [0.0] * replica.max_runs
    loop_free = busy_s = end = last_end = 0.0
    head = batches = 0
    while head < count:
        start = max(came[head], free[0], loop_free)
        most = times.best_rows(1)
        rows = 1
        while rows < most and head + rows < count and came[head + rows] <= start:
            rows += 1
        busy = 1 if replica.max_runs == 1 else 1 + sum(at > start for at in free)
        factor = factors[int(start / each_s) % len(factors)]
        run_s = factor * service.run_s(rows, busy, max(start - last_end, 0.0))
        estimate_s = times.estimate(rows=rows, length=1) or 0.0
        is_inline = replica.may_inline and estimate_s < limit_s
        # A loop that has just run a batch does not sleep before the next; one that waited for a
        # thread, or for a request, does.
        wake_s = 0.0 if is_inline and came[head] < loop_free else replica.wake_s
        end = start + run_s + factor * (wake_s + rows * replica.cpu_s) * varies[batches]
        last_end = max(last_end, end)
        if is_inline:
            loop_free = end
        else:
            heapq.heapreplace(free, end)
        times.observe(rows=rows, length=1, seconds=run_s)
        latency += [end - at for at in came[head : head + rows]]
        busy_s += end - start
        head += rows
        batches += 1
    makespan = max(end, *free, loop_free) - came[0]
    return Outcome(
        latency_s=(np.asarray(latency) + fixed_s)[int(count * _SKIPPED) :],
        busy_ratio=min(busy_s / makespan / replica.max_runs, 1.0),
        batch_rows=count / batches,
        makespan_s=makespan,
    )


def _drawn(replica: Replica, count: int, *, seed: int) -> tuple[list[float], Array | float]:
    """By what the part of the event loop varies in each batch; what each caller waits besides."""
    if not replica.spread:
        return [1.0] * count, replica.fixed_s
    rng = np.random.default_rng(seed)
    spread = np.asarray(replica.spread)
    varies: list[float] = rng.choice(spread, count).tolist()
    return varies, replica.fixed_s * rng.choice(spread, count)


def _powers(most: int) -> list[int]:
    found = [1]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found
