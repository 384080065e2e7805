"""How many requests per second, when the model costs nothing and the server everything?

A 26 kB MLP, one row, 32 connections; each server alone on one core, the load on another.
"""

from contextlib import ExitStack
from typing import Final

from bench import cpu, models, systems, verify
from bench.context import Context, http_arm, one_row
from bench.load import closed
from bench.payloads import binary_payload, json_payload
from bench.results import SuiteResult, Table, Target, cell, cores_used
from bench.systems import System
from bench.windows import Arm, Rounds, figure, interleave, ratio

MODEL: Final = "mlp"
CONNECTIONS: Final = 32

FASTAPI: Final = "FastAPI tuned, JSON"
JSON: Final = "replica, JSON"
BINARY: Final = "replica, binary"
ENVOY: Final = "Envoy + replica on one core, JSON"
ENVOY_APART: Final = "Envoy on the load's core, JSON"


def run(context: Context) -> SuiteResult:
    """Measure, with every feature of the replica on."""
    with ExitStack() as stack:
        rounds = interleave(_arms(context, stack), rounds=context.rounds)
    return SuiteResult(
        name=MODEL, table=_table(rounds), targets=_targets(rounds), rounds=rounds, notes=_notes()
    )


def _arms(context: Context, stack: ExitStack) -> list[Arm]:
    path, cores, home = context.models[MODEL], context.placement.server, context.home
    row = one_row()
    expected = models.run_bare(path, row)
    fastapi = stack.enter_context(systems.fastapi(path, cores=cores, home=home))
    replica = stack.enter_context(systems.replica(path, name=MODEL, cores=cores, home=home))
    whole = stack.enter_context(systems.up(path, name=MODEL, inputs=row, cores=cores, home=home))

    text, binary = json_payload(MODEL, row), binary_payload(MODEL, row)
    for system in (fastapi, replica, whole):
        verify.check_http(system.name, system.http, text, expected)
    verify.check_http(replica.name, replica.http, binary, expected)

    text_load = context.load([text], name="mlp-json", connections=CONNECTIONS)
    binary_load = context.load([binary], name="mlp-binary", connections=CONNECTIONS)
    arms = [
        http_arm(FASTAPI, fastapi.http, text_load),
        http_arm(JSON, replica.http, text_load),
        http_arm(BINARY, replica.http, binary_load),
        http_arm(ENVOY, whole.http, text_load),
    ]
    if context.placement.load != context.placement.server:
        arms.append(envoy_apart(ENVOY_APART, whole, text_load, context))
    return arms


def envoy_apart(name: str, whole: System, load: closed.Load, context: Context) -> Arm:
    """The same system while its Envoy runs on the load's core."""

    def measure() -> dict[str, float]:
        cpu.pin(whole.envoy, set(context.placement.load))
        try:
            return dict(closed.measure(whole.http, load))
        finally:
            cpu.pin(whole.envoy, set(context.placement.server))

    return Arm(name=name, measure=measure)


def _table(rounds: Rounds) -> Table:
    parts = {FASTAPI: systems.FASTAPI, JSON: systems.REPLICA, BINARY: systems.REPLICA}
    return Table(
        headings=["server", "requests/s", "times FastAPI", "p50 us", "p99 us", "cores", "load"],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "rps")),
                cell(ratio(rounds, arm, FASTAPI, "rps"), 2),
                cell(figure(rounds, arm, "p50_us")),
                cell(figure(rounds, arm, "p99_us")),
                cores_used(rounds, arm, parts.get(arm, systems.ENVOY)),
                cores_used(rounds, arm, cpu.LOAD),
            ]
            for arm in rounds
        ],
    )


def _targets(rounds: Rounds) -> list[Target]:
    return [
        Target(
            text="replica, times FastAPI", value=ratio(rounds, JSON, FASTAPI, "rps").median, limit=5
        ),
        Target(text="binary, times JSON", value=ratio(rounds, BINARY, JSON, "rps").median, limit=1),
        Target(
            text="through Envoy, times FastAPI without a gateway",
            value=ratio(rounds, ENVOY, FASTAPI, "rps").median,
            limit=1.8,
        ),
    ]


def _notes() -> list[str]:
    notes = ["'cores' is what the server used, 'load' what the load tool used, of one core each"]
    if closed.tool() != "wrk":
        notes.append("wrk is missing: our own client is slower than the replica, so it is a floor")
    return notes
