"""Recommendation of threads, runs, batch, delay and replicas, each with its reason. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from headrace.core import BatchingSpec, PaddingSpec
from headrace.core.text import duration_text
from headrace.optimize.profiling.grid import best_rows
from headrace.optimize.profiling.messages import GridCell, Measured, Overhead
from headrace.optimize.profiling.predict import (
    REQUESTS,
    USUAL_LOAD,
    Interval,
    LoadPoint,
    MeasuredService,
    Predictor,
    ReplicaModel,
    RunTimes,
    find_phases,
    without_drift,
)

DEFAULT_ROWS: Final = BatchingSpec().max_batch_size
_NEARLY: Final = 0.97


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """Requirements of the user; None for unspecified ones."""

    rate: float | None = None
    """Requests per second."""
    p99_s: float | None = None
    """Limit of the p99 latency, in seconds."""
    cost_per_hour: float | None = None
    """Price of one replica's cores, in any currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadOption:
    """Combination of threads per run and concurrent runs, with its prediction."""

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
    """Return a predictor for a replica that serves requests of one row and this length.

    Without a measured overhead, it counts as zero.
    """
    phases = find_phases(measured.cells)
    cells = cells_of(measured.cells, threads=threads, length=length)
    steady = [without_drift(cell, phases) for cell in cells]
    loaded = measured.loaded
    replica = ReplicaModel(
        max_batch_size=max_batch_size if loaded.batched else 1,
        max_runs=runs if loaded.concurrent else 1,
        wake_s=overhead.wake_s if overhead else 0.0,
        cpu_s=overhead.cpu_s if overhead else 0.0,
        fixed_s=overhead.wall_s - overhead.wake_s - overhead.cpu_s if overhead else 0.0,
        may_inline=loaded.concurrent,
        spread=overhead.spread if overhead else (),
    )

    def service(seed: int) -> RunTimes:
        return MeasuredService(steady, seed=seed)

    return Predictor(replica=replica, service=service, requests=requests, phases=phases)


def cells_of(cells: Iterable[GridCell], *, threads: int, length: int) -> list[GridCell]:
    """Return the cells of one thread count and length."""
    return [cell for cell in cells if cell.threads == threads and cell.length == length]


def options_of(
    measured: Measured,
    overhead: Overhead | None,
    requirements: Requirements,
    *,
    cores: int,
    requests: int,
) -> list[ThreadOption]:
    """Return a prediction for each measured thread count, with as many runs as the cores allow."""
    length = measured.loaded.length
    options = []
    for threads in sorted({cell.threads for cell in measured.cells}):
        runs = max(1, cores // threads) if measured.loaded.concurrent else 1
        if not cells_of(measured.cells, threads=threads, length=length):
            continue
        predictor = predictor_for(
            measured, overhead, threads=threads, runs=runs, length=length, requests=requests
        )
        capacity = predictor.capacity()
        within = None
        if requirements.p99_s is not None:
            within = predictor.rate_within(requirements.p99_s, capacity=capacity)
        options.append(
            ThreadOption(
                threads=threads,
                runs=runs,
                predictor=predictor,
                capacity=capacity,
                within=within,
                p99_s=predictor.point(USUAL_LOAD * capacity, capacity).p99_s,
            )
        )
    return options


def best_option(
    options: Sequence[ThreadOption], requirements: Requirements
) -> tuple[ThreadOption, str]:
    """Return the best option for the requirements, with the reason."""
    if requirements.p99_s is not None and any(option.within for option in options):
        maximum = max(option.within or 0.0 for option in options)
        best = next(o for o in options if (o.within or 0.0) >= maximum * _NEARLY)
        description = f"requests/s within a p99 of {duration_text(requirements.p99_s)}"
        figures = {o.threads: f"{o.within or 0.0:.4g}" for o in options}
    else:
        maximum = max(option.capacity for option in options)
        best = next(o for o in options if o.capacity >= maximum * _NEARLY)
        description = "largest requests/s"
        figures = {o.threads: f"{o.capacity:.4g}" for o in options}
        rate = requirements.rate
        if rate is not None:
            able = [o for o in options if o.capacity * USUAL_LOAD >= rate]
            if able:
                p99_by_threads = {
                    o.threads: o.predictor.point(rate, o.capacity).p99_s for o in able
                }
                minimum = min(p99_by_threads.values())
                best = next(o for o in able if p99_by_threads[o.threads] * _NEARLY <= minimum)
                description = f"p99 at {rate:g} requests/s"
                figures = {threads: duration_text(p99) for threads, p99 in p99_by_threads.items()}
    text = ", ".join(f"{threads}: {value}" for threads, value in figures.items())
    return best, f"{description} by threads per run: {text}"


_WORTH: Final = 1.05
_CLEARLY: Final = 1.1
"""Least gain of a limit above the default."""
_MAX_PADDING: Final = 2.0
_PER_HOUR: Final = 3600.0


class SettingReason(msgspec.Struct, frozen=True, kw_only=True):
    """Reason of a recommended setting."""

    name: str
    value: str
    why: str


class ServingRecommendation(msgspec.Struct, frozen=True, kw_only=True):
    """Recommended configuration of a replica, and the number of replicas."""

    intra_op_threads: int
    max_concurrent_runs: int
    max_batch_size: int
    max_queue_delay_s: float
    best_rows: int
    capacity: float
    rate_per_replica: float | None
    """Highest rate within the requirements."""
    busy_ratio: float
    """Utilization at `rate`."""
    p99_s: float
    """p99 latency at `rate`."""
    padding: PaddingSpec | None = None
    """Padding limits; None leaves the choice to the engine."""
    replicas: int | None = None
    """Replicas for the required rate; None without one."""
    spare_replicas: int | None = None
    """Replicas with one spare for a failure."""
    cost_per_million: float | None = None
    """Cost of a million requests at `rate`."""
    reasons: tuple[SettingReason, ...] = ()
    rate: float | None = None
    """Rate of each replica for which `p99_s` is predicted."""
    p99_ci_s: Interval | None = None
    """See `LoadPoint`."""
    check_s: float | None = None
    """Duration of a load at that rate until its p99 is known to about 10 %."""


def recommend(
    measured: Measured,
    overhead: Overhead | None,
    requirements: Requirements,
    *,
    cores: int,
    requests: int,
) -> ServingRecommendation:
    """Recommend a configuration for replicas with `cores` cores each.

    Args:
        measured: With at least one cell.
        requests: Number of simulated requests for each load; half of it to compare options.
    """
    options = options_of(measured, overhead, requirements, cores=cores, requests=requests // 2)
    best, reason = best_option(options, requirements)
    alone = [
        cell
        for cell in cells_of(measured.cells, threads=best.threads, length=measured.loaded.length)
        if cell.runs == 1
    ]
    rows = best_rows(alone)
    within = best.within if requirements.p99_s is not None else USUAL_LOAD * best.capacity
    count = (
        None
        if requirements.rate is None or not within
        else max(1, math.ceil(requirements.rate / within))
    )
    share = within or best.capacity * USUAL_LOAD
    if count is not None and requirements.rate is not None:
        share = requirements.rate / count
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
    if requirements.cost_per_hour is not None:
        cost = requirements.cost_per_hour / (share * _PER_HOUR) * 1e6
    padding, padding_why = _padding(measured, alone, rows)
    reasons = [
        SettingReason(name="intra_op_threads", value=str(best.threads), why=reason),
        SettingReason(
            name="max_concurrent_runs",
            value=str(best.runs),
            why=_runs_reason(measured, best.threads, cores=cores),
        ),
        SettingReason(name="max_batch_size", value=str(max_rows), why=rows_why),
        SettingReason(
            name="max_queue_delay_s",
            value="0",
            why="waiting to fill a batch leaves the model idle while requests wait; requests that "
            "arrive during a run share the next one",
        ),
    ]
    if padding_why:
        value = "by the engine" if padding is None else f"{padding.max_ratio:g}"
        reasons.append(SettingReason(name="padding.max_ratio", value=value, why=padding_why))
    reasons += _replica_reasons(requirements, within, count, point)
    if cost is not None:
        price = f"{requirements.cost_per_hour:g} per hour for {cores} cores"
        reason = f"{price}, {share:.4g} requests/s on them"
        reasons.append(SettingReason(name="cost_per_million", value=f"{cost:.4g}", why=reason))
    return ServingRecommendation(
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


def _runs_reason(measured: Measured, threads: int, *, cores: int) -> str:
    if not measured.loaded.concurrent:
        return "the model takes one run at a time"
    rates: dict[int, float] = {}
    for cell in cells_of(measured.cells, threads=threads, length=measured.loaded.length):
        rates[cell.runs] = max(rates.get(cell.runs, 0.0), cell.rows_per_s)
    figures = ", ".join(f"{at_once}: {rate:.4g}" for at_once, rate in sorted(rates.items()))
    share = f"{cores} cores, {threads} for each run" if threads > 1 else f"{cores} cores"
    return f"{share}; rows/s by runs at once: {figures}"


def _limit(
    measured: Measured,
    overhead: Overhead | None,
    option: ThreadOption,
    alone: Sequence[GridCell],
    best: int,
) -> tuple[int, str]:
    """Return the batch limit: above the default only if that raises the throughput.

    A smaller limit is never recommended, as the limit also bounds the rows of one request.
    """
    if not measured.loaded.batched:
        return 1, "the model has no batch axis"
    rows = {cell.rows: cell.mean_s / cell.rows for cell in alone}
    finding = "time per row does not fall with the batch"
    if best > 1 and 1 in rows:
        finding = (
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
            return best, f"{finding}: {more} with {DEFAULT_ROWS}"
        finding += f", which gains no requests/s over {DEFAULT_ROWS}"
    return DEFAULT_ROWS, (
        f"{finding}; the engine stops where a larger batch gains nothing, and the limit also "
        "bounds the rows of one request"
    )


def _padding(
    measured: Measured, alone: Sequence[GridCell], best: int
) -> tuple[PaddingSpec | None, str]:
    """Return the padding limit: padding may cost half of what sharing a batch gains."""
    padding = measured.loaded.padding
    row_s = {cell.rows: cell.mean_s / cell.rows for cell in alone}
    if padding is None or 1 not in row_s:
        return None, ""
    gain = row_s[1] / row_s[best]
    if gain < _WORTH:
        reason = f"a shared batch gains {gain - 1:.0%} for each row: only equal lengths share one"
        return msgspec.structs.replace(padding, max_ratio=1.0), reason
    ratio = min(round(math.sqrt(gain), 2), _MAX_PADDING)
    reason = (
        f"a row costs {gain:.2f} times as much alone as in the best batch: padding by {ratio:g} "
        "still leaves half of that gain"
    )
    return msgspec.structs.replace(padding, max_ratio=ratio), reason


def _replica_reasons(
    requirements: Requirements, within: float | None, count: int | None, point: LoadPoint
) -> list[SettingReason]:
    if within is None:
        assert requirements.p99_s is not None, "else it is a share of the capacity"
        limit = duration_text(requirements.p99_s)
        reason = f"no rate keeps p99 within {limit}: one request alone takes longer"
        return [SettingReason(name="replicas", value="none", why=reason)]
    limit = (
        f"p99 stays within {duration_text(requirements.p99_s)} up to {within:.4g} requests/s per "
        "replica"
        if requirements.p99_s is not None
        else f"{within:.4g} requests/s is {USUAL_LOAD:.0%} of what a replica can do"
    )
    if count is None:
        return [
            SettingReason(
                name="rate_per_replica",
                value=f"{within:.4g}",
                why=f"{limit}; p99 {duration_text(point.p99_s)}",
            )
        ]
    reason = (
        f"{limit}, and {requirements.rate:g} are required; each replica is then busy "
        f"{point.busy_ratio:.0%} with a p99 of {duration_text(point.p99_s)}; one spare replica "
        "covers a failure"
    )
    return [SettingReason(name="replicas", value=f"{count} (+1)", why=reason)]
