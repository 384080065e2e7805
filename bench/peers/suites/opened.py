"""Open-loop load on one of a pair, and whether the generator kept up."""

from collections.abc import Mapping
from typing import Final

from bench.load import arrivals
from bench.load.open_loop import NO_BURST, Burst
from bench.payloads import write_payloads
from bench.peers.pair import Pair, with_headers
from bench.peers.running import Server
from bench.windows import Figures

MAX_RATE: Final = 6000.0
"""Past it the generator, which is written in Python, needs its whole core and lags."""
DEADLINE_S: Final = 0.1
DEADLINE: Final = {"x-headrace-timeout-s": f"{DEADLINE_S:g}"}
"""Sent to everybody; who knows it can leave work undone that nobody waits for."""
NO_HEADERS: Final[Mapping[str, str]] = {}


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
    figures = arrivals.measure(server.http, load, may_fail=True)
    return {**figures, "rate": rate, "in_time_ratio": figures["good"] / max(figures["sent"], 1)}
