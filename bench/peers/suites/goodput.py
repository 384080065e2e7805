"""At what rate are 99 % of the answers there within 100 ms?

Each server's rate is searched once over all that it might take, then in every round near what was
found. A rate counts only if it was sent and held.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final, Protocol

from bench.peers import running
from bench.peers.pair import Pair, Plan, metered
from bench.peers.rows import Row
from bench.peers.running import Server
from bench.peers.stats import largest
from bench.peers.suites.opened import send
from bench.windows import Arm, Figures, quiet_window, watched

SUITE: Final = "goodput"
LOAD: Final = "99 % within 100 ms"
IN_TIME: Final = 0.99
NEARLY: Final = 0.95
"""A window that failed with as much in time is sent again: one stall of the machine costs that."""
LOW: Final = 0.4
HIGH: Final = 1.3
"""Bounds of the first search, of what was answered with all connections busy."""
BELOW: Final = 0.88
ABOVE: Final = 1.18
"""Bounds of a round's search, of what the first found, whose last step was a sixth."""
BRACKETS: Final = 4
"""How often a round's search may move."""
WINDOWS: Final = 2.5
"""Windows are so many times as long as others: 1 % of what is sent must be more than a few."""


class Send(Protocol):
    """Sends at a rate once; what came back."""

    def __call__(self, rate: float, *, seed: int) -> Figures: ...


def run(pair: Pair) -> Sequence[Row]:
    """Search near what was found before, in turn."""
    return compare(pair, SUITE, [arm(pair, server) for server in pair.servers])


def compare(pair: Pair, suite: str, arms: Sequence[Arm]) -> Sequence[Row]:
    """Measure in turn; noisy windows were sent again one by one, so no search is repeated."""
    rounds = pair.plan.rounds
    return pair.task.compare(suite, pair.model.name, LOAD, arms, rounds=rounds, again=False)


def arm(pair: Pair, server: Server) -> Arm:
    """Searches for the largest rate of a server."""

    def once(rate: float, *, seed: int) -> Figures:
        seconds = WINDOWS * pair.plan.seconds
        sent = partial(send, pair, server, rate, seconds=seconds, seed=seed)
        with running.stopped(pair.other(server)):
            return metered(server.part, sent)

    return arm_of(server.name, once, capacity=pair.capacity(server), plan=pair.plan)


def arm_of(name: str, once: Send, *, capacity: float, plan: Plan) -> Arm:
    """Searches widely now, and near that whenever it is measured."""
    take = watched if plan.is_quick else lambda sent: quiet_window(Arm(name=name, measure=sent))

    def quiet(rate: float, *, seed: int) -> Figures:
        return take(partial(once, rate, seed=seed)).figures

    return Arm(name=name, measure=searched(quiet, capacity=capacity, probes=plan.probes))


def searched(once: Send, *, capacity: float, probes: int) -> Callable[[], Figures]:
    """Search widely now; what is returned searches near that, each time with the next seed."""
    rate = search(partial(once, seed=0), capacity=capacity, probes=probes)
    seeds = count(1)
    return lambda: nearby(partial(once, seed=next(seeds)), rate, probes=probes)


def search(sent_at: Callable[[float], Figures], *, capacity: float, probes: int) -> float:
    """The largest rate at which enough is in time."""
    return largest(
        lambda at: keeps(tried(sent_at, at)),
        low=LOW * capacity,
        high=HIGH * capacity,
        probes=probes,
    )


def nearby(sent_at: Callable[[float], Figures], rate: float, *, probes: int) -> Figures:
    """Figures of the largest rate near `rate` that held; `goodput` is that rate.

    Where all that was tried held, or nothing did, the search goes on above or below. If nothing
    holds there either, figures are of the last that was tried, and `goodput` is 0.
    """
    held: dict[float, Figures] = {}
    failed: dict[float, Figures] = {}

    def holds(at: float) -> bool:
        figures = tried(sent_at, at)
        (held if keeps(figures) else failed)[at] = figures
        return at in held

    low, high = BELOW * rate, ABOVE * rate
    width = high / low
    for _ in range(BRACKETS):
        largest(holds, low=low, high=high, probes=probes)
        if held and failed:
            break
        low = max(held) if held else low / width
        high = low * width
    if not held:
        return {**failed[min(failed)], "goodput": 0.0}
    best = max(held)
    return {**held[best], "goodput": best}


def tried(sent_at: Callable[[float], Figures], rate: float) -> Figures:
    """Figures of a window, of a second one where the first nearly held."""
    figures = sent_at(rate)
    return sent_at(rate) if NEARLY <= figures["in_time_ratio"] < IN_TIME else figures


def keeps(figures: Figures) -> bool:
    """Whether enough of what was sent was answered in time; refusals and losses are not."""
    return figures["in_time_ratio"] >= IN_TIME
