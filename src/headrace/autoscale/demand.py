"""Demand: the number of replicas that the load needs under the SLO, with its uncertainty.

A replica with `c` concurrent runs is a queue with `c` servers. Erlang's C formula gives the share
of requests that wait; the wait is exponential with a mean that is halved here, because a model
takes nearly the same time for every request (the Allen-Cunneen approximation with a squared
coefficient of variation of 0 for service and 1 for arrivals). See Allen, "Probability, Statistics,
and Queueing Theory", 2nd ed. 1990, 5.3, and Whitt, "Approximations for the GI/G/m queue", 1993.

Both estimates grow in proportion to the load and not with the queue that a shortage causes, so that
one scale-up suffices and a scale-down does not cause the next scale-up:

- Requests per second times the replica seconds of each (the offered load, by Little's law) over the
  target utilization. The backlog of a shortage is added, as it must be processed too.
- With `target_in_flight`: requests in flight over that target. These do grow with a shortage;
  `decide` uses arrivals while replicas start.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec

from headrace.autoscale.state import (
    Mean,
    ScalerState,
    at_least,
    at_most,
    mean_arrivals,
    mean_in_flight,
    suffixes,
)
from headrace.core.spec.scale import AutoscaleSpec

DEFAULT_UTILISATION: Final = 0.7
"""Target without an SLO, or before a run was measured: headroom for a burst of two fifths."""
MIN_UTILISATION: Final = 0.5
MAX_UTILISATION: Final = 0.8
"""Maximum target: beyond it, a small error in the load causes a large one in the wait."""
_LATE_RATIO: Final = 0.01
_ALIKE: Final = 64
"""Number of servers from which more of them make no relevant difference."""
_WAIT_SHARE: Final = 6.0
"""The 99th percentile of an exponential wait is about 4.6 means; the rest is headroom."""
_MIN_WAIT_SHARE: Final = 0.05


def erlang_c(servers: int, load: float) -> float:
    """Return the ratio of requests that find all `servers` busy; `load` is arrivals x service."""
    if load >= servers:
        return 1.0
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = load * blocked / (busy + load * blocked)
    return servers * blocked / (servers - load * (1.0 - blocked))


def late_ratio(*, servers: int, utilisation: float, slack: float) -> float:
    """Return the ratio of requests (0 to 1) that wait longer than `slack` service times."""
    if slack < 0.0:
        return 1.0
    waits = erlang_c(servers, servers * utilisation)
    return waits * math.exp(-2.0 * servers * (1.0 - utilisation) * slack)


def target_utilisation(*, slo_latency_s: float | None, run_s: float | None, servers: int) -> float:
    """Return the target utilization, 0 to 1, at which 99 % of the requests are in time.

    Args:
        slo_latency_s: The p99 objective; None for none.
        run_s: Duration of one run; None if unknown.
        servers: Concurrent runs over all replicas: more of them may be busier, because a request
            finds a free one more often. The gateway picks the less loaded of two.
    """
    if slo_latency_s is None or run_s is None or run_s <= 0.0:
        return DEFAULT_UTILISATION
    slack = round(slo_latency_s / run_s - 1.0, 2)  # rounded, for more cache hits
    return _busiest(min(max(servers, 1), _ALIKE), slack)


def copies_for(
    load: float, *, slo_latency_s: float | None, run_s: float | None, concurrency: int
) -> float:
    """Return the replicas that carry `load`, as a fraction.

    `load` is in fully busy replicas: arrivals x replica seconds of each. The result is an integer
    where one more replica becomes necessary.
    """
    carried, copies = 0.0, 0
    while True:
        copies += 1
        busy = target_utilisation(
            slo_latency_s=slo_latency_s, run_s=run_s, servers=copies * concurrency
        )
        more = copies * busy
        if load <= more:
            return copies - 1 + (load - carried) / (more - carried)
        if copies * concurrency >= _ALIKE:
            return load / busy
        carried = more


@lru_cache(maxsize=4096)
def _busiest(servers: int, slack: float) -> float:
    low, high = MIN_UTILISATION, MAX_UTILISATION
    if late_ratio(servers=servers, utilisation=high, slack=slack) <= _LATE_RATIO:
        return high
    for _ in range(12):
        middle = (low + high) / 2
        if late_ratio(servers=servers, utilisation=middle, slack=slack) <= _LATE_RATIO:
            low = middle
        else:
            high = middle
    return low


def target_wait_s(*, slo_latency_s: float | None, run_s: float | None) -> float | None:
    """Return the mean queue wait that the SLO allows; None without an SLO."""
    if slo_latency_s is None:
        return None
    queue_time_s = slo_latency_s - (run_s or 0.0)
    return max(queue_time_s / _WAIT_SHARE, slo_latency_s * _MIN_WAIT_SHARE)


_GROW_Z: Final = 1.0
_BURST_Z: Final = 3.0
_SHRINK_Z: Final = 2.0
"""Standard errors. Growth needs evidence that more is needed; shrinking that less is enough.
Between the two nothing changes, which prevents flapping under constant load."""
_SHRINK_MARGIN: Final = 1.1
_MOST: Final = 1e6
"""Upper limit of a target: above any bound, but finite, as a target near zero would give
infinity."""
_ENOUGH_LOOKS: Final = 3
"""Minimum number of observations, in which a request completes and reports its cost, before
requests in flight count."""


class ReplicaDemand(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas that the load needs, as fractions."""

    needed: float
    """Mean over the stable window."""

    grow: float
    """Lower bound of the mean."""

    shrink: float
    """Upper bound of the mean."""

    burst: float
    """Lower bound from the last second or any longer part of the panic window."""

    numbers: dict[str, float]
    """Inputs of the means."""

    explanation: str

    burst_explanation: str

    by_in_flight: bool = False
    """Whether the demand grows with the queue that a shortage causes."""


def demand_of(
    state: ScalerState, settings: AutoscaleSpec, *, concurrency: int
) -> ReplicaDemand | None:
    """Return the demand from the state's windows; None without data."""
    arrivals = mean_arrivals(state.stable)
    if settings.target_in_flight is None and arrivals is not None and state.service_s is not None:
        return _by_arrivals(state, settings, concurrency)
    stable, recent = mean_in_flight(state.stable), suffixes(state.panic, mean_in_flight)
    if stable is None or (settings.target_in_flight is None and stable.looks < _ENOUGH_LOOKS):
        return None
    target = settings.target_in_flight or concurrency * DEFAULT_UTILISATION
    sure = max((at_least(mean, z=_BURST_Z) for mean in recent), default=0.0)
    return _demand(
        stable,
        sure,
        lambda in_flight: in_flight / target,
        numbers={"in_flight": stable.value, "target_in_flight": target},
        explanation=f"{stable.value:.3g} requests in flight, {target:.3g} per copy",
        burst_explanation=f"{sure:.3g} requests in flight, {target:.3g} per copy",
        by_in_flight=True,
    )


def _by_arrivals(state: ScalerState, settings: AutoscaleSpec, concurrency: int) -> ReplicaDemand:
    service_s = state.service_s
    assert service_s is not None
    stable, recent = mean_arrivals(state.stable), suffixes(state.panic, mean_arrivals)
    assert stable is not None

    def copies(arrivals: float) -> float:
        return copies_for(
            arrivals * service_s,
            slo_latency_s=settings.slo_latency_s,
            run_s=state.run_s,
            concurrency=concurrency,
        )

    def explain(arrivals: float, backlog_text: str = "") -> str:
        return (
            f"{arrivals:.3g} requests/s{backlog_text} x {service_s:.3g} s of a copy that may be "
            "busy "
            f"{_busy(arrivals * service_s, copies(arrivals)):.0%}"
        )

    sure = max((at_least(mean, z=_BURST_Z) for mean in recent), default=0.0)
    backlog = _backlog(state, settings, arrivals=sure, concurrency=concurrency)
    backlog_text = f", {backlog:.3g} of them to empty the queues," if backlog else ""
    busy = _busy(stable.value * service_s, copies(stable.value))
    return _demand(
        stable,
        sure + backlog,
        copies,
        numbers={"arrivals": stable.value, "service_s": service_s, "target_utilisation": busy},
        explanation=explain(stable.value),
        burst_explanation=explain(sure + backlog, backlog_text),
    )


def _busy(load: float, copies: float) -> float:
    return load / copies if copies > 0.0 else DEFAULT_UTILISATION


def _backlog(
    state: ScalerState, settings: AutoscaleSpec, *, arrivals: float, concurrency: int
) -> float:
    """Return the backlog of a shortage, as additional requests per second to process.

    It is to be processed within a panic window after the next replica is available. Running
    requests, and as many again, are not backlog.
    """
    newest = mean_in_flight(state.panic[-1:])
    if newest is None:
        return 0.0
    run_s = state.run_s or 0.0
    running = max(concurrency * max(state.replicas, 1), arrivals * run_s)
    # At least four runs: more arrivals must never give a smaller sum of both.
    within_s = max(settings.panic_window_s + state.start_s, 4.0 * run_s)
    return max(newest.value - 2.0 * running, 0.0) / within_s


def _demand(
    stable: Mean,
    recent: float,
    copies: Callable[[float], float],
    *,
    numbers: dict[str, float],
    explanation: str,
    burst_explanation: str,
    by_in_flight: bool = False,
) -> ReplicaDemand:
    return ReplicaDemand(
        needed=min(copies(stable.value), _MOST),
        grow=min(copies(at_least(stable, z=_GROW_Z)), _MOST),
        shrink=min(copies(at_most(stable, z=_SHRINK_Z) * _SHRINK_MARGIN), _MOST),
        burst=min(copies(recent), _MOST),
        numbers=numbers,
        explanation=explanation,
        burst_explanation=burst_explanation,
        by_in_flight=by_in_flight,
    )
