"""Which threads inside a run, and how many runs at once, serve the wishes best? Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from headrace.core import BatchingSpec
from headrace.core.text import duration_text
from headrace.optimize.profiling.messages import Cell, Measured, Overhead
from headrace.optimize.profiling.predict import REQUESTS, USUAL_LOAD, Predictor, Replica
from headrace.optimize.profiling.service import MeasuredService, Service, find_phases, without_drift

DEFAULT_ROWS: Final = BatchingSpec().max_batch_size
_NEARLY: Final = 0.97


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the system; None for what is left open.

    `rate`: requests a second. `p99_s`: the latency that 99 of 100 requests should have at most.
    `cost_per_hour`: of as many cores as one replica has, in whatever currency.
    """

    rate: float | None = None
    p99_s: float | None = None
    cost_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Threads inside one run, and runs at once, with what is predicted for them."""

    threads: int
    runs: int
    predictor: Predictor
    capacity: float
    within: float | None
    p99_s: float


def predictor_for(
    measured: Measured,
    overhead: Overhead | None,
    *,
    threads: int,
    runs: int,
    length: int,
    max_batch_size: int = DEFAULT_ROWS,
    requests: int = REQUESTS,
) -> Predictor:
    """Predicts a replica that serves requests of one row and this length.

    Without an overhead, what a request costs besides its run counts as nothing.
    """
    phases = find_phases(measured.cells)
    cells = cells_of(measured.cells, threads=threads, length=length)
    steady = [without_drift(cell, phases) for cell in cells]
    loaded = measured.loaded
    replica = Replica(
        max_batch_size=max_batch_size if loaded.batched else 1,
        max_runs=runs if loaded.concurrent else 1,
        wake_s=overhead.wake_s if overhead else 0.0,
        cpu_s=overhead.cpu_s if overhead else 0.0,
        fixed_s=overhead.wall_s - overhead.wake_s - overhead.cpu_s if overhead else 0.0,
        may_inline=loaded.concurrent,
        spread=overhead.spread if overhead else (),
    )

    def service(seed: int) -> Service:
        return MeasuredService(steady, seed=seed)

    return Predictor(replica=replica, service=service, requests=requests, phases=phases)


def cells_of(cells: Iterable[Cell], *, threads: int, length: int) -> list[Cell]:
    """The cells of one number of threads and one length."""
    return [cell for cell in cells if cell.threads == threads and cell.length == length]


def options_of(
    measured: Measured, overhead: Overhead | None, wishes: Wishes, *, cores: int, requests: int
) -> list[Option]:
    """What is predicted for each number of threads that was measured, as many runs as cores."""
    length = measured.loaded.length
    found = []
    for threads in sorted({cell.threads for cell in measured.cells}):
        runs = max(1, cores // threads) if measured.loaded.concurrent else 1
        if not cells_of(measured.cells, threads=threads, length=length):
            continue
        predictor = predictor_for(
            measured, overhead, threads=threads, runs=runs, length=length, requests=requests
        )
        capacity = predictor.capacity()
        within = None
        if wishes.p99_s is not None:
            within = predictor.rate_within(wishes.p99_s, capacity=capacity)
        found.append(
            Option(
                threads=threads,
                runs=runs,
                predictor=predictor,
                capacity=capacity,
                within=within,
                p99_s=predictor.point(USUAL_LOAD * capacity, capacity).p99_s,
            )
        )
    return found


def best_option(options: Sequence[Option], wishes: Wishes) -> tuple[Option, str]:
    """The option for the wishes, and why."""
    if wishes.p99_s is not None and any(option.within for option in options):
        most = max(option.within or 0.0 for option in options)
        best = next(o for o in options if (o.within or 0.0) >= most * _NEARLY)
        what = f"requests/s within a p99 of {duration_text(wishes.p99_s)}"
        told = {o.threads: f"{o.within or 0.0:.4g}" for o in options}
    else:
        most = max(option.capacity for option in options)
        best = next(o for o in options if o.capacity >= most * _NEARLY)
        what = "requests/s at most"
        told = {o.threads: f"{o.capacity:.4g}" for o in options}
        rate = wishes.rate
        if rate is not None:
            able = [o for o in options if o.capacity * USUAL_LOAD >= rate]
            if able:
                at = {o.threads: o.predictor.point(rate, o.capacity).p99_s for o in able}
                least = min(at.values())
                best = next(o for o in able if at[o.threads] * _NEARLY <= least)
                what = f"p99 at {rate:g} requests/s"
                told = {threads: duration_text(p99) for threads, p99 in at.items()}
    text = ", ".join(f"{threads}: {value}" for threads, value in told.items())
    return best, f"{what} by threads inside a run: {text}"
