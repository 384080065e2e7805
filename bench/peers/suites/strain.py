"""What is left of a burst, and of three times too much?

A model of a few milliseconds, so that the generator is never the limit. Every request says that
nobody waits longer than 100 ms.
"""

from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Final

from bench.load.open_loop import Burst
from bench.peers.pair import Pair
from bench.peers.rows import Row
from bench.peers.running import Server
from bench.peers.suites.opened import DEADLINE, send
from bench.windows import Arm, Figures

BURST: Final = "burst"
BURST_LOAD: Final = "15 % of its own capacity, ten times that for a second"
OVERLOAD: Final = "overload"
BASE: Final = 0.15
TIMES: Final = 10.0
PERIOD_S: Final = 3.0
PEAK: Final = (0.8, 1.0)
"""Where the peak of goodput is looked for."""
TOO_MUCH: Final = 3.0


def at_times(times: float) -> str:
    """The load's name."""
    return f"{times:g} x its own capacity"


def burst(pair: Pair) -> Sequence[Row]:
    """A second of bursts in every three."""
    bursts = 1 if pair.plan.is_quick else 2
    shape = Burst(factor=TIMES, starts=[1.0 + PERIOD_S * number for number in range(bursts)])
    arms = [_burst_arm(pair, server, shape, bursts * PERIOD_S) for server in pair.servers]
    return pair.compare(BURST, BURST_LOAD, arms, rounds=1)


def overload(pair: Pair) -> Sequence[Row]:
    """Ours first: a queue that a peer keeps outlives its callers."""
    rows: list[Row] = []
    for times in (*(PEAK[-1:] if pair.plan.is_quick else PEAK), TOO_MUCH):
        for server in pair.servers:
            if server is pair.ours or times < TOO_MUCH:
                rows += _overload(pair, server, times)
    return [*rows, *_overload(pair, pair.theirs, TOO_MUCH)]


def _overload(pair: Pair, server: Server, times: float) -> Sequence[Row]:
    at = times * pair.capacity(server)
    once = partial(
        send, pair, server, at, seconds=1.5 * pair.plan.seconds, seed=1, headers=DEADLINE
    )
    arm = pair.arm(server, once)
    return pair.compare(OVERLOAD, at_times(times), [arm], rounds=1)


def _burst_arm(pair: Pair, server: Server, shape: Burst, seconds: float) -> Arm:
    seeds = count(1)

    def once() -> Figures:
        figures = send(
            pair,
            server,
            BASE * pair.capacity(server),
            seconds=seconds,
            seed=next(seeds),
            headers=DEADLINE,
            burst=shape,
        )
        recovery_s = max(0.0, figures["last_miss_s"] - shape.end_s)
        return {**figures, "recovery_s": recovery_s}

    return pair.arm(server, once)
