"""At what rate are 99 % of the answers there within 100 ms?

The rate is searched for each server, then both are measured at their own in turn.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final

from bench.peers import running
from bench.peers.pair import Pair
from bench.peers.rows import Row
from bench.peers.running import Server
from bench.peers.stats import largest
from bench.peers.suites.opened import send
from bench.windows import Arm, Figures

SUITE: Final = "goodput"
LOAD: Final = "99 % within 100 ms"
IN_TIME: Final = 0.99
LOW: Final = 0.4
HIGH: Final = 1.3
"""Bounds of the search, of what was answered with all connections busy."""


def run(pair: Pair) -> Sequence[Row]:
    """Search, then measure."""
    arms = [arm(pair, server) for server in pair.servers]
    return pair.compare(SUITE, LOAD, arms, rounds=pair.plan.rounds)


def arm(pair: Pair, server: Server) -> Arm:
    """Measures a server at the largest rate that was found for it."""
    once = partial(send, pair, server, seconds=1.5 * pair.plan.seconds)
    with running.stopped(pair.other(server)):
        rate = search(
            partial(once, seed=0), capacity=pair.capacity(server), probes=pair.plan.probes
        )
    seeds = count(1)
    return pair.arm(server, lambda: once(rate, seed=next(seeds)))


def search(sent_at: Callable[[float], Figures], *, capacity: float, probes: int) -> float:
    """The largest rate at which enough is in time."""
    return largest(
        lambda at: keeps(sent_at(at)), low=LOW * capacity, high=HIGH * capacity, probes=probes
    )


def keeps(figures: Figures) -> bool:
    """Whether enough of what was sent was answered in time; refusals and losses are not."""
    return figures["in_time_ratio"] >= IN_TIME
