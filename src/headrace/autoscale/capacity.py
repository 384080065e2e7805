"""How busy may a copy be, and how long may a request wait, so that the SLO is met?

A copy with `c` runs at once is a queue with `c` servers. Erlang's C formula says how many requests
wait; how long, is exponential with a mean that is halved here, because a model takes nearly the
same time for every request (the Allen-Cunneen approximation with a squared coefficient of variation
of 0 for service and 1 for arrivals). See Allen, "Probability, Statistics, and Queueing Theory",
2nd ed. 1990, 5.3, and Whitt, "Approximations for the GI/G/m queue", 1993.
"""

import math
from functools import lru_cache
from typing import Final

DEFAULT_UTILISATION: Final = 0.7
"""Without an SLO, or before a run was timed: room for a burst of two fifths."""
MIN_UTILISATION: Final = 0.5
MAX_UTILISATION: Final = 0.8
"""Beyond it a small error in the load is a large one in the wait."""
_LATE_RATIO: Final = 0.01
_ALIKE: Final = 64
"""From so many servers on, more of them make no difference worth computing."""
_WAIT_SHARE: Final = 6.0
"""An exponential wait has its 99th percentile at about 4.6 means; the rest is room."""
_LEAST_WAIT_SHARE: Final = 0.05


def erlang_c(servers: int, load: float) -> float:
    """The share of requests (0 to 1) that find all `servers` busy; `load` is arrivals x service."""
    if load >= servers:
        return 1.0
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = load * blocked / (busy + load * blocked)
    return servers * blocked / (servers - load * (1.0 - blocked))


def late_ratio(*, servers: int, utilisation: float, slack: float) -> float:
    """The share of requests (0 to 1) that wait longer than `slack` service times."""
    if slack < 0.0:
        return 1.0
    waits = erlang_c(servers, servers * utilisation)
    return waits * math.exp(-2.0 * servers * (1.0 - utilisation) * slack)


def target_utilisation(*, slo_latency_s: float | None, run_s: float | None, servers: int) -> float:
    """How busy copies should be, 0 to 1: as busy as 99 % of the requests in time allow.

    Args:
        slo_latency_s: The p99 that is promised; None for none.
        run_s: How long one run takes; None if it is not known.
        servers: Runs at once, over all copies: more of them may be busier, because a request finds
            a free one more often. The gateway sends it to the less loaded of two.
    """
    if slo_latency_s is None or run_s is None or run_s <= 0.0:
        return DEFAULT_UTILISATION
    slack = round(slo_latency_s / run_s - 1.0, 2)  # rounded, so that the cache is of use
    return _busiest(min(max(servers, 1), _ALIKE), slack)


def copies_for(
    load: float, *, slo_latency_s: float | None, run_s: float | None, concurrency: int
) -> float:
    """How many copies carry `load`, as a fraction: whole numbers are where one more is needed.

    `load` is in copies that are busy all the time: arrivals x seconds of a copy for each.
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
    """The mean wait in a queue that the SLO leaves room for; None without an SLO."""
    if slo_latency_s is None:
        return None
    left = slo_latency_s - (run_s or 0.0)
    return max(left / _WAIT_SHARE, slo_latency_s * _LEAST_WAIT_SHARE)
