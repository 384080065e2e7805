"""How long do callers wait at a quarter, half and three quarters of a capacity?

Open loop, Poisson arrivals; latency counts from the intended time. Both at shares of the slower
one's capacity, and the faster one at half of its own. Repetitions have arrivals of their own, the
same for both.
"""

from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Final

from bench.peers.pair import Pair
from bench.peers.rows import Row
from bench.peers.running import Server
from bench.peers.suites.opened import highest_rate, send
from bench.windows import Arm

SUITE: Final = "latency"
SHARES: Final = (0.5, 0.25, 0.75)
"""Half comes first: it is what is promised."""
HALF: Final = 0.5
OWN: Final = "50 % of its own capacity"


def of_slower(share: float) -> str:
    """The load's name."""
    return f"{100 * share:.0f} % of the slower one's capacity"


def distinct(shares: Sequence[float], capacity: float, highest: float) -> list[float]:
    """Those shares whose rates differ: past what the generator can send they do not."""
    rates = {min(share * capacity, highest): share for share in reversed(shares)}
    return list(rates.values())[::-1]


def run(pair: Pair) -> Sequence[Row]:
    """All rates."""
    plan = pair.plan
    slower = min(pair.capacity(server) for server in pair.servers)
    highest = highest_rate(pair)
    rows: list[Row] = []
    for share in distinct((HALF,) if plan.is_quick else SHARES, slower, highest):
        at = min(share * slower, highest)
        arms = [_arm(pair, server, at) for server in pair.servers]
        rounds = plan.rounds if share == HALF else plan.few
        rows += pair.compare(SUITE, of_slower(share), arms, rounds=rounds)
    # The slower one's own is what both were asked already.
    own = {server: min(HALF * pair.capacity(server), highest) for server in pair.servers}
    asked = min(HALF * slower, highest)
    apart = [_arm(pair, server, at) for server, at in own.items() if at != asked]
    return [*rows, *pair.compare(SUITE, OWN, apart, rounds=plan.few)] if apart else rows


def _arm(pair: Pair, server: Server, at: float) -> Arm:
    seeds = count(1)
    once = partial(send, pair, server, at, seconds=pair.plan.seconds)
    return pair.arm(server, lambda: once(seed=next(seeds)))
