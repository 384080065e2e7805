"""Comparison of online, streaming and batch inference: resources, cost and fit. Pure.

The arithmetic is simple on purpose, so that it can be checked by hand: processor time per row, rows
per second, utilization of a core, and the price of a core.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core.text import duration_text

HOURS_A_MONTH: Final = 730.0
_DAY_S: Final = 86_400.0
_USED_ONLINE: Final = 0.7
"""Utilization of a core at the peak: beyond it, tail latency grows steeply."""
_USED_STREAM: Final = 0.8
_USED_BATCH: Final = 0.5
"""Share of the time between two runs, so that a failed run can be repeated in time."""
_TAIL: Final = 3.0
"""Ratio of p99 to the time of one row at that utilization (docs: how p99 is predicted)."""
_REQUEST_S: Final = 0.0002
"""Processor time of a request without its run: a core handled 5,000 to 6,500 small ones a second
through gateway and replica (`make bench`)."""
_RECORD_S: Final = 0.000_008
"""The same for a record of a stream: the embedded log handled 115,000 to 159,000 a second."""
_LOOKUP_S: Final = 0.0003
"""Processor time of a look-up by key, as of features (`python -m bench.features_endpoint`)."""
_WRITE_S: Final = 0.000_02
"""The same for a result that is written to the online store (`python -m bench.features`: 30,000
records take 0.6 s to Redis, 0.2 s to SQLite)."""
_HOP_S: Final = 0.02
"""p99 from writing a record to writing its result, without its run: the goal for streams."""
_RUN_S: Final = 30.0
"""Overhead of a batch run, generously: process start, model load, files, schedule interval."""
_MIN_BETWEEN_RUNS_S: Final = 300.0
"""More frequent runs amount to a stream, with the start cost each time."""
_COPIES: Final = 2
"""Copies of an online server, so that one may fail."""


class InferenceMode(StrEnum):
    """A mode of running a model."""

    ONLINE = "online"
    STREAMING = "streaming"
    BATCH = "batch"


class Arrival(StrEnum):
    """How rows arrive."""

    REQUESTS = "requests"
    """A caller sends a request and waits for the response."""
    EVENTS = "events"
    """An event occurs, and another system reacts to the result."""
    TABLE = "table"
    """Rows are in files or tables, and all of them are scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The requirements. Rates are rows per second."""

    arrival: Arrival

    rate: float

    peak_rate: float

    latency_s: float | None = None
    """p99 limit of a result, from the request or the event; rows of a table wait for a run."""

    freshness_s: float | None = None
    """Maximum age of the data behind a result when it is used."""

    entities: int | None = None
    """Number of entities for which results can be precomputed, with all inputs known; None: no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Core seconds per row: alone, and within a batch."""

    row_s: float
    batch_row_s: float
    cost_per_hour: float = 0.05
    """Cost of a core per hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOption:
    """One mode with its resources and cost."""

    mode: InferenceMode

    fits: bool
    """Whether it meets the requirements."""

    why: tuple[str, ...]
    """The arithmetic, as sentences."""

    cores: int

    cost_per_month: float

    rows_a_month: float
    """Number of rows that it scores per month."""

    latency_s: float | None

    freshness_s: float

    every_s: float | None = None
    """Interval between two batch runs."""

    @property
    def cost_per_million(self) -> float | None:
        """Return the cost per million requested rows; None without rows."""
        return self.cost_per_month / self.rows_a_month * 1e6 if self.rows_a_month else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModePlan:
    """All modes, and the cheapest that fits; None if none does, with the reasons in `notes`."""

    needs: Needs
    costs: Costs
    options: tuple[ModeOption, ...]
    recommended: InferenceMode | None
    notes: tuple[str, ...]


def plan_mode(needs: Needs, costs: Costs) -> ModePlan:
    """Compare the three modes."""
    options = (_online(needs, costs), _streaming(needs, costs), _batch(needs, costs))
    fitting = sorted(
        (option for option in options if option.fits),
        key=lambda option: (option.cost_per_month, option.cores),
    )
    return ModePlan(
        needs=needs,
        costs=costs,
        options=options,
        recommended=fitting[0].mode if fitting else None,
        notes=tuple(_notes(needs, options, fitting)),
    )


def _online(needs: Needs, costs: Costs) -> ModeOption:
    busy = needs.peak_rate * (costs.row_s + _REQUEST_S)
    cores = max(math.ceil(busy / _USED_ONLINE), _COPIES)
    latency_s = _TAIL * (costs.row_s + _REQUEST_S)
    row_text = duration_text(costs.row_s + _REQUEST_S)
    first = (
        f"{needs.peak_rate:,.4g} rows/s at the peak x {row_text} = {busy:.3g} cores busy; "
        f"{cores} at {_USED_ONLINE:.0%} utilization, at least {_COPIES} copies"
    )
    reason = [first]
    fits = True
    if needs.arrival is Arrival.TABLE:
        fits = False
        reason.append("all rows of a table are scored: there are no single requests")
    if needs.latency_s is not None and latency_s > needs.latency_s:
        fits = False
        reason.append(
            f"p99 would be about {duration_text(latency_s)}, and "
            f"{duration_text(needs.latency_s)} is required: make the model faster "
            "(`headrace optimize`), or precompute results"
        )
    return ModeOption(
        mode=InferenceMode.ONLINE,
        fits=fits,
        why=tuple(reason),
        cores=cores,
        cost_per_month=cores * HOURS_A_MONTH * costs.cost_per_hour,
        rows_a_month=needs.rate * HOURS_A_MONTH * 3600,
        latency_s=latency_s,
        freshness_s=0.0,
    )


def _streaming(needs: Needs, costs: Costs) -> ModeOption:
    each_s = costs.batch_row_s + _RECORD_S
    lag_s = _HOP_S + _TAIL * costs.row_s
    # With an hour of delay allowed, the busiest minute needs no cores.
    deadline_s = _deadline_s(needs)
    waits = deadline_s is not None and deadline_s >= 3600  # noqa: PLR2004  # an hour
    rate, of_what = (needs.rate, "on average") if waits else (needs.peak_rate, "at the peak")
    cores = max(math.ceil(rate * each_s / _USED_STREAM), 1)
    first = (
        f"{rate:,.4g} rows/s {of_what} x {duration_text(each_s)} in micro-batches "
        f"= {rate * each_s:.3g} cores busy; {cores} at {_USED_STREAM:.0%} utilization"
    )
    reason = [first]
    fits = True
    if needs.arrival is Arrival.REQUESTS:
        fits = False
        reason.append("results go to a topic, not back to the caller")
    if deadline_s is not None and lag_s > deadline_s:
        fits = False
        reason.append(
            f"a result takes {duration_text(lag_s)}, {duration_text(deadline_s)} is required"
        )
    if needs.arrival is Arrival.TABLE:
        reason.append("each row must be written to a topic first")
    return ModeOption(
        mode=InferenceMode.STREAMING,
        fits=fits,
        why=tuple(reason),
        cores=cores,
        cost_per_month=cores * HOURS_A_MONTH * costs.cost_per_hour,
        rows_a_month=needs.rate * HOURS_A_MONTH * 3600,
        latency_s=None if needs.arrival is Arrival.REQUESTS else lag_s,
        freshness_s=lag_s,
    )


def _batch(needs: Needs, costs: Costs) -> ModeOption:
    deadline_s = _deadline_s(needs)
    fresh_s = _DAY_S if deadline_s is None else deadline_s
    every_s = fresh_s / 2
    on_request = needs.arrival is Arrival.REQUESTS
    rows = float(needs.entities or 0) if on_request else needs.rate * every_s
    row_s = costs.batch_row_s + (_WRITE_S if on_request else 0.0)
    busy_s = rows * row_s
    fits = True
    reason = []
    if every_s < _MIN_BETWEEN_RUNS_S:
        fits = False
        reason.append(
            f"results no older than {duration_text(fresh_s)} need a run every "
            f"{duration_text(every_s)}: that is a stream"
        )
    if on_request and needs.entities is None:
        fits = False
        reason.append("inputs are known only with a request (otherwise set --entities)")
    between = max(every_s, _MIN_BETWEEN_RUNS_S)
    cores = max(math.ceil(busy_s / max(between * _USED_BATCH - _RUN_S, 1.0)), 1)
    runs_a_month = HOURS_A_MONTH * 3600 / between
    core_hours = runs_a_month * (busy_s + _RUN_S) / 3600
    run_s = _RUN_S + busy_s / cores
    description = f"{needs.entities or 0:,} entities" if on_request else f"{rows:,.4g} rows"
    reason.insert(
        0,
        f"a run every {duration_text(between)} over {description} x {duration_text(row_s)} takes "
        f"{duration_text(run_s)} on {cores} core{'s' if cores > 1 else ''}, "
        "charged only while it runs",
    )
    latency_s = None
    if on_request and needs.entities is not None:
        look_up_s = _REQUEST_S + _LOOKUP_S
        busy = needs.peak_rate * look_up_s
        answering = max(math.ceil(busy / _USED_ONLINE), _COPIES)
        latency_s = _TAIL * look_up_s
        cores += answering
        core_hours += answering * HOURS_A_MONTH
        reason.append(
            f"results are looked up by key: {needs.peak_rate:,.4g} look-ups/s at the peak x "
            f"{duration_text(look_up_s)} = {busy:.3g} cores busy; {answering} at "
            f"{_USED_ONLINE:.0%} utilization all the time, at least {_COPIES} copies"
        )
        if needs.latency_s is not None and latency_s > needs.latency_s:
            fits = False
            reason.append(
                f"p99 of a look-up would be about {duration_text(latency_s)}, and "
                f"{duration_text(needs.latency_s)} is required"
            )
    return ModeOption(
        mode=InferenceMode.BATCH,
        fits=fits,
        why=tuple(reason),
        cores=cores,
        cost_per_month=core_hours * costs.cost_per_hour,
        rows_a_month=needs.rate * HOURS_A_MONTH * 3600,
        latency_s=latency_s,
        freshness_s=between + run_s,
        every_s=between,
    )


def _deadline_s(needs: Needs) -> float | None:
    """Return the time limit from event to result; the freshness for a request or a table."""
    latency_s = needs.latency_s if needs.arrival is Arrival.EVENTS else None
    return min((s for s in (needs.freshness_s, latency_s) if s is not None), default=None)


def _notes(needs: Needs, options: tuple[ModeOption, ...], fitting: list[ModeOption]) -> list[str]:
    notes = []
    if not fitting:
        missing = "; ".join(f"{o.mode}: {o.why[-1]}" for o in options if not o.fits)
        notes.append(f"no mode meets all requirements; {missing}")
    elif len(fitting) > 1:
        first, second = fitting[:2]
        if second.cost_per_month > 0:
            less = 1 - first.cost_per_month / second.cost_per_month
            notes.append(f"{first.mode} costs {less:.0%} less than {second.mode}, which also fits")
    if needs.peak_rate > 20 * max(needs.rate, 1e-9):
        notes.append(
            f"the peak is {needs.peak_rate / max(needs.rate, 1e-9):,.0f} times the average: online "
            "cores are mostly idle; `autoscale`, or a pool with other models, uses them"
        )
    if any(option.mode is InferenceMode.STREAMING for option in fitting):
        notes.append("the cost of a broker is not included")
    return notes
