"""Does it keep its promises when three times too much is asked of it?

A model of a few milliseconds, open loop, every request with a deadline of 100 ms that the replica
is told. Goodput is what was answered in time, counted from when the request should have left.
FastAPI, which knows no deadlines, is shown at three times its capacity.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

from bench import models, systems, verify
from bench.context import Context, one_row
from bench.load import arrivals, closed
from bench.payloads import json_payload, write_payloads
from bench.results import SuiteResult, Table, Target, cell
from bench.windows import Arm, Rounds, Window, figure, interleave, quiet_window
from headrace.core.headers import TIMEOUT_HEADER

MODEL: Final = "busy"
DEADLINE_S: Final = 0.1
TIMES: Final = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
IN_FLIGHT: Final = 8
"""Enough for a closed loop to find the capacity."""
MAX_LAG_S: Final = 0.02
FASTAPI_ARM: Final = "FastAPI at 3 x its capacity"


def run(context: Context) -> SuiteResult:
    """Find the capacity, then ask for half to three times of it."""
    with ExitStack() as stack:
        path = context.models[MODEL]
        replica = stack.enter_context(
            systems.replica(path, name=MODEL, cores=context.placement.server, home=context.home)
        )
        capacity = _capacity(context, replica)
        arms = [
            Arm(name=_name(times), measure=partial(_push, context, replica, capacity * times))
            for times in TIMES
        ]
        rounds = dict(interleave(arms, rounds=2 if context.quick else 3))
    rounds[FASTAPI_ARM] = [_fastapi(context)]
    peak = max(figure(rounds, _name(times), "goodput").median for times in TIMES)
    target = Target(
        text="goodput at 3 x capacity, of its peak",
        value=figure(rounds, _name(TIMES[-1]), "goodput").median / peak,
        limit=0.9,
    )
    notes = [f"capacity in a closed loop, {IN_FLIGHT} in flight: {capacity:.0f} requests/s"]
    return SuiteResult(
        name="overload",
        table=_table(rounds),
        targets=[target],
        rounds=rounds,
        notes=[*notes, *_lag_notes(rounds)],
    )


def _name(times: float) -> str:
    return f"replica at {times:g} x"


def _capacity(context: Context, system: systems.System) -> float:
    row = one_row()
    payload = json_payload(MODEL, row)
    expected = models.run_bare(context.models[MODEL], row)
    verify.check_http(system.name, system.http, payload, expected)
    load = context.load([payload], name="capacity", connections=IN_FLIGHT)
    closed.measure(system.http, load)
    return closed.measure(system.http, load)["rps"]


def _push(
    context: Context, system: systems.System, rate: float, *, may_leave: bool = False
) -> Mapping[str, float]:
    """One window; `may_leave`: requests may still wait when the load tool gives up."""
    payload = json_payload(MODEL, one_row()).with_headers({TIMEOUT_HEADER: f"{DEADLINE_S:g}"})
    load = arrivals.OpenLoad(
        index=write_payloads([payload], context.home / "payloads-overload"),
        rate=rate,
        seconds=2 * context.seconds,
        deadline_s=DEADLINE_S,
        cores=context.placement.load,
    )
    return arrivals.measure(system.http, load, may_fail=may_leave)


def _fastapi(context: Context) -> Window:
    """One window in a process of its own: its queue outlives the load, and the load tool."""
    path, cores = context.models[MODEL], context.placement.server
    with systems.fastapi(path, cores=cores, home=context.home) as system:
        rate = 3 * _capacity(context, system)
        return quiet_window(
            Arm(name=FASTAPI_ARM, measure=partial(_push, context, system, rate, may_leave=True))
        )


def _table(rounds: Rounds) -> Table:
    def share(arm: str, key: str) -> str:
        windows = rounds[arm]
        sent = sum(window.figures["sent"] for window in windows)
        return f"{100 * sum(w.figures.get(key, 0) for w in windows) / sent:.1f} %"

    return Table(
        headings=["load", "in time /s", "in time", "late", "429", "504", "p99 of 200s, ms"],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "goodput")),
                share(arm, "good"),
                share(arm, "late"),
                share(arm, "status_429"),
                share(arm, "status_504"),
                f"{1000 * figure(rounds, arm, 'p99_s').median:.0f}",
            ]
            for arm in rounds
        ],
    )


def _lag_notes(rounds: Rounds) -> list[str]:
    lag = max(window.figures["lag_p99_s"] for windows in rounds.values() for window in windows)
    load = max(window.figures["load_cores"] for windows in rounds.values() for window in windows)
    text = f"load tool: 99 % left within {1000 * lag:.1f} ms of their time, {load:.2f} cores"
    return [text if lag <= MAX_LAG_S else f"{text}: too late, the load tool is the limit"]
