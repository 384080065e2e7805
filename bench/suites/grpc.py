"""How many unary gRPC calls per second, routed by the model that the message names?

The MLP, one row, 32 calls in flight. Envoy and replica share the core that `grpc.aio` has alone.
"""

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from bench import cpu, models, systems, verify
from bench.context import Context, one_row
from bench.load import h2
from bench.payloads import grpc_payload
from bench.results import SuiteResult, Table, Target, cell, cores_used
from bench.windows import Arm, Rounds, figure, interleave, ratio

MODEL: Final = "mlp"
SHAPES: Final = ((4, 8), (32, 1))
"""Connections, and calls in flight on each."""


def run(context: Context) -> SuiteResult:
    """Measure both shapes of load; the worse ratio is held against the target."""
    if not h2.is_installed():
        return SuiteResult(name="grpc", skipped="h2load is not installed (Debian: nghttp2-client)")
    with ExitStack() as stack:
        rounds = interleave(_arms(context, stack), rounds=context.rounds)
    worst = min(
        ratio(rounds, _arm(systems.ENVOY, shape), _arm(systems.GRPC_AIO, shape), "rps").median
        for shape in SHAPES
    )
    target = Target(text="through Envoy, times grpc.aio", value=worst, limit=3)
    return SuiteResult(name="grpc", table=_table(rounds), targets=[target], rounds=rounds)


def _arm(system: str, shape: tuple[int, int]) -> str:
    return f"{system}, {shape[0]} connections x {shape[1]}"


def _arms(context: Context, stack: ExitStack) -> list[Arm]:
    path, cores, home = context.models[MODEL], context.placement.server, context.home
    row = one_row()
    expected = models.run_bare(path, row)
    plain = stack.enter_context(systems.grpc_aio(path, cores=cores, home=home))
    whole = stack.enter_context(systems.up(path, name=MODEL, inputs=row, cores=cores, home=home))
    arms = []
    for shape in SHAPES:
        for system in (plain, whole):
            size = verify.check_grpc(system.name, system.grpc, MODEL, row, expected)
            load = h2.H2Load(
                payload=grpc_payload(MODEL, row),
                connections=shape[0],
                streams=shape[1],
                seconds=context.seconds,
                cores=context.placement.load,
                folder=home,
                answer_bytes=size,
            )
            arms.append(_warm(_arm(system.name, shape), system.grpc, load))
    return arms


def _warm(name: str, port: int, load: h2.H2Load) -> Arm:
    h2.measure(port, replace(load, seconds=0.5))
    return Arm(name=name, measure=lambda: h2.measure(port, load))


def _table(rounds: Rounds) -> Table:
    def part(arm: str) -> str:
        return systems.GRPC_AIO if arm.startswith(systems.GRPC_AIO) else systems.ENVOY

    return Table(
        headings=["server", "calls/s", "mean us", "cores", "load"],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "rps")),
                cell(figure(rounds, arm, "mean_us")),
                cores_used(rounds, arm, part(arm)),
                cores_used(rounds, arm, cpu.LOAD),
            ]
            for arm in rounds
        ],
    )
