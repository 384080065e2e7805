"""Comparison of online, streaming and batch: what each mode takes and costs, and what fits. Pure.

The arithmetic is on purpose one that can be done again by hand: processor time of a row, rows in a
second, the share of a core that is used, and the price of a core.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core.text import duration_text

HOURS_A_MONTH: Final = 730.0
_DAY_S: Final = 86_400.0
_USED_ONLINE: Final = 0.7
"""Of a core, at the peak: beyond it the tail of the latency grows steeply."""
_USED_STREAM: Final = 0.8
_USED_BATCH: Final = 0.5
"""Of the time between two runs, so that a run that fails can be done again in time."""
_TAIL: Final = 3.0
"""p99 over the time of one row where a core is used so much (docs: how p99 is predicted)."""
_REQUEST_S: Final = 0.0002
"""Processor time of a request besides its run: a core carried 5,000 to 6,500 small ones a second
through gateway and replica (`make bench`)."""
_RECORD_S: Final = 0.000_008
"""The same of a record of a stream: the embedded log carried 115,000 to 159,000 a second."""
_LOOK_UP_S: Final = 0.0003
"""Processor time of a look-up by key, as of features (`python -m bench.features_endpoint`)."""
_WRITE_S: Final = 0.000_02
"""The same of an answer that is written to the online store (`python -m bench.features`: 30,000
records take 0.6 s to Redis, 0.2 s to SQLite)."""
_HOP_S: Final = 0.02
"""p99 from a record's writing to its answer's, besides its run: what streams are meant to keep."""
_RUN_S: Final = 30.0
"""What a run takes besides its rows, with room: a process, a model, files, the schedule's look."""
_LEAST_BETWEEN_RUNS_S: Final = 300.0
"""Runs closer together are a stream, with the costs of starting each time."""
_COPIES: Final = 2
"""Of what has to answer while one copy fails."""


class InferenceMode(StrEnum):
    """How a model is run."""

    ONLINE = "online"
    STREAMING = "streaming"
    BATCH = "batch"


class Arrival(StrEnum):
    """How rows come to be scored."""

    REQUESTS = "requests"
    """Somebody asks, and waits for the answer."""
    EVENTS = "events"
    """Something happens, and something else has to be done about it."""
    TABLE = "table"
    """They lie in files or tables, and answers are wanted for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What is asked for. Rates are rows in a second.

    `latency_s`: how long an answer may take at p99, from the request or from the event; rows of a
    table wait for a run. `freshness_s`: how old what an answer is based on may be when it is used.
    `entities`: of how many things answers could be computed beforehand, where all their inputs are
    known then; None where they are not.
    """

    arrival: Arrival
    rate: float
    peak_rate: float
    latency_s: float | None = None
    freshness_s: float | None = None
    entities: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a row takes of one core: alone, and within a batch. `cost_per_hour`: of a core."""

    row_s: float
    batch_row_s: float
    cost_per_hour: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOption:
    """One mode. `fits`: whether it gives what is asked for; `why`: for people, the numbers in it.

    `rows_a_month` are those that it scores. `every_s`: between two runs, of a batch.
    """

    mode: InferenceMode
    fits: bool
    why: tuple[str, ...]
    cores: int
    cost_per_month: float
    rows_a_month: float
    latency_s: float | None
    freshness_s: float
    every_s: float | None = None

    @property
    def cost_per_million(self) -> float | None:
        """Of rows that are wanted; None where there are none."""
        return self.cost_per_month / self.rows_a_month * 1e6 if self.rows_a_month else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModePlan:
    """All modes, and the cheapest that fits; None where none does, and `notes` say what would."""

    needs: Needs
    costs: Costs
    options: tuple[ModeOption, ...]
    recommended: InferenceMode | None
    notes: tuple[str, ...]


def plan_mode(needs: Needs, costs: Costs) -> ModePlan:
    """Compare the three modes."""
    options = (_online(needs, costs), _streaming(needs, costs), _batch(needs, costs))
    fitting = sorted(
        (one for one in options if one.fits), key=lambda one: (one.cost_per_month, one.cores)
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
    each = duration_text(costs.row_s + _REQUEST_S)
    first = (
        f"{needs.peak_rate:,.4g} rows/s at the peak x {each} each = {busy:.3g} cores busy; "
        f"{cores} at {_USED_ONLINE:.0%} use, no fewer than {_COPIES} copies"
    )
    why = [first]
    fits = True
    if needs.arrival is Arrival.TABLE:
        fits = False
        why.append("nobody asks for single rows: all that lie there are wanted")
    if needs.latency_s is not None and latency_s > needs.latency_s:
        fits = False
        why.append(
            f"p99 would be about {duration_text(latency_s)}, and "
            f"{duration_text(needs.latency_s)} is asked for: make the model faster "
            "(`headrace optimize`), or compute answers beforehand"
        )
    return ModeOption(
        mode=InferenceMode.ONLINE,
        fits=fits,
        why=tuple(why),
        cores=cores,
        cost_per_month=cores * HOURS_A_MONTH * costs.cost_per_hour,
        rows_a_month=needs.rate * HOURS_A_MONTH * 3600,
        latency_s=latency_s,
        freshness_s=0.0,
    )


def _streaming(needs: Needs, costs: Costs) -> ModeOption:
    each_s = costs.batch_row_s + _RECORD_S
    lag_s = _HOP_S + _TAIL * costs.row_s
    # Who can wait for an hour needs no cores for the busiest minute.
    asked_s = _soonest(needs)
    waits = asked_s is not None and asked_s >= 3600  # noqa: PLR2004  # an hour
    rate, of_what = (needs.rate, "on average") if waits else (needs.peak_rate, "at the peak")
    cores = max(math.ceil(rate * each_s / _USED_STREAM), 1)
    first = (
        f"{rate:,.4g} rows/s {of_what} x {duration_text(each_s)} each in micro-batches "
        f"= {rate * each_s:.3g} cores busy; {cores} at {_USED_STREAM:.0%} use"
    )
    why = [first]
    fits = True
    if needs.arrival is Arrival.REQUESTS:
        fits = False
        why.append("an answer goes to a topic, not back to the one who asked")
    if asked_s is not None and lag_s > asked_s:
        fits = False
        why.append(
            f"an answer comes after {duration_text(lag_s)}, {duration_text(asked_s)} is asked for"
        )
    if needs.arrival is Arrival.TABLE:
        why.append("each row has to be written to a topic first")
    return ModeOption(
        mode=InferenceMode.STREAMING,
        fits=fits,
        why=tuple(why),
        cores=cores,
        cost_per_month=cores * HOURS_A_MONTH * costs.cost_per_hour,
        rows_a_month=needs.rate * HOURS_A_MONTH * 3600,
        latency_s=None if needs.arrival is Arrival.REQUESTS else lag_s,
        freshness_s=lag_s,
    )


def _batch(needs: Needs, costs: Costs) -> ModeOption:
    asked_s = _soonest(needs)
    fresh_s = _DAY_S if asked_s is None else asked_s
    every_s = fresh_s / 2
    beforehand = needs.arrival is Arrival.REQUESTS
    rows = float(needs.entities or 0) if beforehand else needs.rate * every_s
    row_s = costs.batch_row_s + (_WRITE_S if beforehand else 0.0)
    busy_s = rows * row_s
    fits = True
    why = []
    if every_s < _LEAST_BETWEEN_RUNS_S:
        fits = False
        why.append(
            f"answers no older than {duration_text(fresh_s)} need a run every "
            f"{duration_text(every_s)}: that is a stream"
        )
    if beforehand and needs.entities is None:
        fits = False
        why.append("inputs are known only once somebody asks (else say of how many: --entities)")
    between = max(every_s, _LEAST_BETWEEN_RUNS_S)
    cores = max(math.ceil(busy_s / max(between * _USED_BATCH - _RUN_S, 1.0)), 1)
    runs_a_month = HOURS_A_MONTH * 3600 / between
    core_hours = runs_a_month * (busy_s + _RUN_S) / 3600
    run_s = _RUN_S + busy_s / cores
    what = f"{needs.entities or 0:,} entities" if beforehand else f"{rows:,.4g} rows"
    why.insert(
        0,
        f"a run every {duration_text(between)} over {what} x {duration_text(row_s)} each takes "
        f"{duration_text(run_s)} on {cores} core{'s' if cores > 1 else ''}, "
        "which are paid for while it runs",
    )
    latency_s = None
    if beforehand and needs.entities is not None:
        look_up_s = _REQUEST_S + _LOOK_UP_S
        busy = needs.peak_rate * look_up_s
        answering = max(math.ceil(busy / _USED_ONLINE), _COPIES)
        latency_s = _TAIL * look_up_s
        cores += answering
        core_hours += answering * HOURS_A_MONTH
        why.append(
            f"answers are looked up by key: {needs.peak_rate:,.4g} look-ups/s at the peak x "
            f"{duration_text(look_up_s)} each = {busy:.3g} cores busy; {answering} at "
            f"{_USED_ONLINE:.0%} use all the time, no fewer than {_COPIES} copies"
        )
        if needs.latency_s is not None and latency_s > needs.latency_s:
            fits = False
            why.append(
                f"p99 of a look-up would be about {duration_text(latency_s)}, and "
                f"{duration_text(needs.latency_s)} is asked for"
            )
    return ModeOption(
        mode=InferenceMode.BATCH,
        fits=fits,
        why=tuple(why),
        cores=cores,
        cost_per_month=core_hours * costs.cost_per_hour,
        rows_a_month=needs.rate * HOURS_A_MONTH * 3600,
        latency_s=latency_s,
        freshness_s=between + run_s,
        every_s=between,
    )


def _soonest(needs: Needs) -> float | None:
    """How long after an event its answer is needed; of a request or a table the freshness."""
    latency_s = needs.latency_s if needs.arrival is Arrival.EVENTS else None
    return min((s for s in (needs.freshness_s, latency_s) if s is not None), default=None)


def _notes(needs: Needs, options: tuple[ModeOption, ...], fitting: list[ModeOption]) -> list[str]:
    notes = []
    if not fitting:
        notes.append("no mode gives all that is asked for; " + _what_would(options))
    elif len(fitting) > 1:
        first, second = fitting[:2]
        if second.cost_per_month > 0:
            less = 1 - first.cost_per_month / second.cost_per_month
            notes.append(f"{first.mode} costs {less:.0%} less than {second.mode}, which fits too")
    if needs.peak_rate > 20 * max(needs.rate, 1e-9):
        notes.append(
            f"the peak is {needs.peak_rate / max(needs.rate, 1e-9):,.0f} times the average: online "
            "cores are idle mostly; `autoscale`, or a pool with other models, uses them"
        )
    if any(one.mode is InferenceMode.STREAMING for one in fitting):
        notes.append("a broker that is there already costs nothing here; a new one is not counted")
    return notes


def _what_would(options: tuple[ModeOption, ...]) -> str:
    return "; ".join(f"{one.mode}: {one.why[-1]}" for one in options if not one.fits)
