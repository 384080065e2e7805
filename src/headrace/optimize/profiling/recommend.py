"""How should the model be served? From what was measured, each setting with its reason. Pure."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.core import PaddingSpec
from headrace.core.text import duration_text
from headrace.optimize.profiling.grid import best_rows
from headrace.optimize.profiling.messages import Cell, Measured, Overhead
from headrace.optimize.profiling.options import (
    DEFAULT_ROWS,
    Option,
    Wishes,
    best_option,
    cells_of,
    options_of,
    predictor_for,
)
from headrace.optimize.profiling.predict import USUAL_LOAD, Interval, Point

_WORTH: Final = 1.05
_CLEARLY: Final = 1.1
"""So much more has to be gained by another limit than the usual one."""
_MAX_PADDING: Final = 2.0
_PER_HOUR: Final = 3600.0


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """A setting, and which numbers decided it."""

    name: str
    value: str
    why: str


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """A serving configuration of one replica, and how many of them.

    `replicas`: for the wished rate; None without one. `spare_replicas`: as many, and one that may
    fail. `rate_per_replica`: the highest within the wishes. `busy_ratio`, `p99_s`: at that share of
    the rate that each replica gets, or at `rate_per_replica`. `cost_per_million`: requests, at that
    rate. `padding`: None leaves it to the engine. `rate`: of each replica, for which `p99_s` is
    predicted. `p99_ci_s`: as of a point. `check_s`: how long a load at that rate has to last
    until its p99 is known to about 10 %.
    """

    intra_op_threads: int
    max_concurrent_runs: int
    max_batch_size: int
    max_queue_delay_s: float
    best_rows: int
    capacity: float
    rate_per_replica: float | None
    busy_ratio: float
    p99_s: float
    padding: PaddingSpec | None = None
    replicas: int | None = None
    spare_replicas: int | None = None
    cost_per_million: float | None = None
    reasons: tuple[Reason, ...] = ()
    rate: float | None = None
    p99_ci_s: Interval | None = None
    check_s: float | None = None


def recommend(
    measured: Measured, overhead: Overhead | None, wishes: Wishes, *, cores: int, requests: int
) -> Recommendation:
    """The configuration, for replicas with so many cores each.

    Args:
        measured: With at least one cell.
        requests: How many are simulated for each load, and half as many to compare options.
    """
    options = options_of(measured, overhead, wishes, cores=cores, requests=requests // 2)
    best, why = best_option(options, wishes)
    alone = [
        cell
        for cell in cells_of(measured.cells, threads=best.threads, length=measured.loaded.length)
        if cell.runs == 1
    ]
    rows = best_rows(alone)
    within = best.within if wishes.p99_s is not None else USUAL_LOAD * best.capacity
    count = None if wishes.rate is None or not within else max(1, math.ceil(wishes.rate / within))
    share = within or best.capacity * USUAL_LOAD
    if count is not None and wishes.rate is not None:
        share = wishes.rate / count
    max_rows, rows_why = _limit(measured, overhead, best, alone, rows)
    predictor = predictor_for(
        measured,
        overhead,
        threads=best.threads,
        runs=best.runs,
        length=measured.loaded.length,
        max_batch_size=max_rows,
        requests=requests,
    ).surely()
    point = predictor.point(share, best.capacity)
    cost = None
    if wishes.cost_per_hour is not None:
        cost = wishes.cost_per_hour / (share * _PER_HOUR) * 1e6
    padding, padding_why = _padding(measured, alone, rows)
    reasons = [
        Reason(name="intra_op_threads", value=str(best.threads), why=why),
        Reason(
            name="max_concurrent_runs",
            value=str(best.runs),
            why=_why_runs(measured, best.threads, cores=cores),
        ),
        Reason(name="max_batch_size", value=str(max_rows), why=rows_why),
        Reason(
            name="max_queue_delay_s",
            value="0",
            why="a batch that waits for company leaves the model idle while somebody waits; "
            "what comes during a run shares the next one",
        ),
    ]
    if padding_why:
        value = "by the engine" if padding is None else f"{padding.max_ratio:g}"
        reasons.append(Reason(name="padding.max_ratio", value=value, why=padding_why))
    reasons += _why_replicas(wishes, within, count, point)
    if cost is not None:
        why = f"{wishes.cost_per_hour:g} an hour for {cores} cores, {share:.4g} requests/s on them"
        reasons.append(Reason(name="cost_per_million", value=f"{cost:.4g}", why=why))
    return Recommendation(
        intra_op_threads=best.threads,
        max_concurrent_runs=best.runs,
        max_batch_size=max_rows,
        max_queue_delay_s=0.0,
        best_rows=rows,
        capacity=best.capacity,
        rate_per_replica=within,
        busy_ratio=point.busy_ratio,
        p99_s=point.p99_s,
        padding=padding,
        replicas=count,
        spare_replicas=None if count is None else count + 1,
        cost_per_million=cost,
        reasons=tuple(reasons),
        rate=share,
    )


def _why_runs(measured: Measured, threads: int, *, cores: int) -> str:
    if not measured.loaded.concurrent:
        return "the model takes one run at a time"
    rates: dict[int, float] = {}
    for cell in cells_of(measured.cells, threads=threads, length=measured.loaded.length):
        rates[cell.runs] = max(rates.get(cell.runs, 0.0), cell.rows_per_s)
    told = ", ".join(f"{at_once}: {rate:.4g}" for at_once, rate in sorted(rates.items()))
    share = f"{cores} cores, {threads} for each run" if threads > 1 else f"{cores} cores"
    return f"{share}; rows/s by runs at once: {told}"


def _limit(
    measured: Measured,
    overhead: Overhead | None,
    option: Option,
    alone: Sequence[Cell],
    best: int,
) -> tuple[int, str]:
    """How many rows a batch may have: more than by default only where requests are served faster.

    Fewer are never recommended, as the limit also bounds the rows of one request.
    """
    if not measured.loaded.batched:
        return 1, "the model has no batch axis"
    rows = {cell.rows: cell.mean_s / cell.rows for cell in alone}
    told = "time per row does not fall with the batch"
    if best > 1 and 1 in rows:
        told = (
            f"time per row is least at {best} rows ({duration_text(rows[best])}, alone "
            f"{duration_text(rows[1])})"
        )
    if best > DEFAULT_ROWS:
        larger = predictor_for(
            measured,
            overhead,
            threads=option.threads,
            runs=option.runs,
            length=measured.loaded.length,
            max_batch_size=best,
            requests=option.predictor.requests,
        ).capacity()
        if larger > option.capacity * _CLEARLY:
            more = f"{larger:.4g} requests/s instead of {option.capacity:.4g}"
            return best, f"{told}: {more} with {DEFAULT_ROWS}"
        told += f", which gains no requests/s over {DEFAULT_ROWS}"
    return DEFAULT_ROWS, (
        f"{told}; the engine stops where it gains nothing, and the limit also bounds the rows of "
        "one request"
    )


def _padding(
    measured: Measured, alone: Sequence[Cell], best: int
) -> tuple[PaddingSpec | None, str]:
    """How much padding is worth a shared batch: half of what sharing it gains."""
    found = measured.loaded.padding
    row_s = {cell.rows: cell.mean_s / cell.rows for cell in alone}
    if found is None or 1 not in row_s:
        return None, ""
    gain = row_s[1] / row_s[best]
    if gain < _WORTH:
        why = f"a shared batch gains {gain - 1:.0%} for each row: only equal lengths share one"
        return msgspec.structs.replace(found, max_ratio=1.0), why
    ratio = min(round(math.sqrt(gain), 2), _MAX_PADDING)
    why = (
        f"a row costs {gain:.2f} times as much alone as in the best batch: padding by {ratio:g} "
        "still leaves half of that gain"
    )
    return msgspec.structs.replace(found, max_ratio=ratio), why


def _why_replicas(
    wishes: Wishes, within: float | None, count: int | None, point: Point
) -> list[Reason]:
    if within is None:
        assert wishes.p99_s is not None, "else it is a share of the capacity"
        limit = duration_text(wishes.p99_s)
        why = f"no rate keeps p99 within {limit}: one request alone takes longer"
        return [Reason(name="replicas", value="none", why=why)]
    limit = (
        f"p99 stays within {duration_text(wishes.p99_s)} up to {within:.4g} requests/s a replica"
        if wishes.p99_s is not None
        else f"{within:.4g} requests/s is {USUAL_LOAD:.0%} of what a replica can do"
    )
    if count is None:
        return [
            Reason(
                name="rate_per_replica",
                value=f"{within:.4g}",
                why=f"{limit}; p99 {duration_text(point.p99_s)}",
            )
        ]
    why = (
        f"{limit}, and {wishes.rate:g} are wished; each is then busy {point.busy_ratio:.0%} with a "
        f"p99 of {duration_text(point.p99_s)}; one more lets one fail"
    )
    return [Reason(name="replicas", value=f"{count} (+1)", why=why)]
