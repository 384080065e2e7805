"""Open-loop load on one of a pair, and whether the generator kept up."""

from collections.abc import Mapping
from typing import Final

from bench.load import arrivals
from bench.load.open_loop import NO_BURST, Burst
from bench.payloads import write_payloads
from bench.peers import running
from bench.peers.pair import Pair, with_headers
from bench.peers.running import Server
from bench.windows import Figures

RATES: Final = (24_000.0, 16_000.0, 12_000.0, 8_000.0, 6_000.0)
"""The generator is written in Python and has one core: how many requests/s it may send on time."""
ON_TIME_S: Final = 0.0001
DEADLINE_S: Final = 0.1
DEADLINE: Final = {"x-headrace-timeout-s": f"{DEADLINE_S:g}"}
"""Sent to everybody; who knows it can leave work undone that nobody waits for."""
NO_HEADERS: Final[Mapping[str, str]] = {}


def highest_rate(pair: Pair) -> float:
    """The largest of `RATES` that the generator sends on time here; the last in any case.

    Tried on Headrace, whose answers wait for the generator and not the other way round.
    """
    with running.stopped(pair.theirs):
        return next((rate for rate in RATES[:-1] if _is_on_time(pair, rate)), RATES[-1])


def _is_on_time(pair: Pair, rate: float) -> bool:
    figures = send(pair, pair.ours, rate, seconds=1.0, seed=0)
    return figures["lag_p99_s"] <= ON_TIME_S


def send(
    pair: Pair,
    server: Server,
    rate: float,
    *,
    seconds: float,
    seed: int,
    headers: Mapping[str, str] = NO_HEADERS,
    burst: Burst = NO_BURST,
) -> Figures:
    """Once: what came back. Nothing that a server answers is an error here; it is counted."""
    payloads = with_headers(server.payloads(pair.model), headers)
    folder = pair.context.home / f"open-{server.name}-{pair.model.name}"
    load = arrivals.OpenLoad(
        index=write_payloads(payloads, folder),
        rate=rate,
        seconds=seconds,
        deadline_s=DEADLINE_S,
        cores=pair.context.placement.load,
        seed=seed,
        burst=burst,
    )
    return counted(arrivals.measure(server.http, load, may_fail=True), rate)


def counted(figures: Figures, rate: float) -> Figures:
    """With what was meant to be sent, and the share of what was sent that was in time."""
    return {**figures, "rate": rate, "in_time_ratio": figures["good"] / max(figures["sent"], 1)}
