"""How long does one caller wait, when nobody else asks?

The MLP, one row of V2 JSON, one connection; server on one core, caller on another.
"""

from contextlib import ExitStack
from typing import Final

from bench import models, systems, verify
from bench.context import Context, http_arm, one_row
from bench.payloads import json_payload
from bench.results import SuiteResult, Table, Target, cell
from bench.suites.mlp import envoy_apart
from bench.windows import Arm, Rounds, difference, figure, interleave

MODEL: Final = "mlp"
FASTAPI: Final = "FastAPI tuned"
REPLICA: Final = "replica"
ENVOY: Final = "Envoy + replica on one core"
ENVOY_APART: Final = "Envoy on the caller's core"
# The goals were set on a machine where FastAPI took this long.
REFERENCE_FASTAPI_US: Final = 120


def run(context: Context) -> SuiteResult:
    """Measure, with every feature of the replica on."""
    with ExitStack() as stack:
        rounds = interleave(_arms(context, stack), rounds=context.rounds)
    return SuiteResult(
        name="latency",
        table=_table(rounds),
        targets=_targets(rounds),
        rounds=rounds,
        notes=[_note(rounds)],
    )


def _arms(context: Context, stack: ExitStack) -> list[Arm]:
    path, cores, home = context.models[MODEL], context.placement.server, context.home
    row = one_row()
    fastapi = stack.enter_context(systems.fastapi(path, cores=cores, home=home))
    replica = stack.enter_context(systems.replica(path, name=MODEL, cores=cores, home=home))
    whole = stack.enter_context(systems.up(path, name=MODEL, inputs=row, cores=cores, home=home))

    payload = json_payload(MODEL, row)
    expected = models.run_bare(path, row)
    for system in (fastapi, replica, whole):
        verify.check_http(system.name, system.http, payload, expected)

    load = context.load([payload], name="latency", connections=1)
    arms = [
        http_arm(FASTAPI, fastapi.http, load),
        http_arm(REPLICA, replica.http, load),
        http_arm(ENVOY, whole.http, load),
    ]
    if context.placement.load != context.placement.server:
        arms.append(envoy_apart(ENVOY_APART, whole, load, context))
    return arms


def _table(rounds: Rounds) -> Table:
    return Table(
        headings=["server", "p50 us", "more than the replica, us", "p99 us", "requests/s"],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "p50_us")),
                cell(difference(rounds, arm, REPLICA, "p50_us")),
                cell(figure(rounds, arm, "p99_us")),
                cell(figure(rounds, arm, "rps")),
            ]
            for arm in rounds
        ],
    )


def _targets(rounds: Rounds) -> list[Target]:
    return [
        Target(
            text="p50 of the replica",
            value=figure(rounds, REPLICA, "p50_us").median,
            limit=100,
            unit="us",
            is_ceiling=True,
        ),
        Target(
            text="what Envoy adds to it",
            value=difference(rounds, ENVOY, REPLICA, "p50_us").median,
            limit=100,
            unit="us",
            is_ceiling=True,
        ),
    ]


def _note(rounds: Rounds) -> str:
    fastapi = figure(rounds, FASTAPI, "p50_us").median
    slower = fastapi / REFERENCE_FASTAPI_US
    replica = figure(rounds, REPLICA, "p50_us").median / slower
    added = difference(rounds, ENVOY, REPLICA, "p50_us").median / slower
    return (
        f"the goals were set where FastAPI took {REFERENCE_FASTAPI_US} us; here it takes "
        f"{fastapi:.0f}. Scaled by that, the replica takes {replica:.0f} us and Envoy adds "
        f"{added:.0f}"
    )
