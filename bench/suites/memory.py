"""Does a replica keep what it should give back?

30,000 requests to the MLP, JSON and binary in turn, 1 to 32 rows, 16 connections.
"""

from typing import Final

import numpy as np

from bench import models, processes, systems, verify
from bench.context import Context
from bench.load import closed
from bench.payloads import Payload, binary_payload, json_payload, write_payloads
from bench.results import SuiteResult, Table, Target
from bench.windows import Arm, Window, watched

MODEL: Final = "mlp"
CONNECTIONS: Final = 16
FIRST: Final = 3_000
STEPS: Final = 9
"""Each of 3,000 requests more."""
MIB: Final = 1 << 20


def run(context: Context) -> SuiteResult:
    """Read resident memory after every 3,000 requests."""
    path, placement = context.models[MODEL], context.placement
    with systems.replica(path, name=MODEL, cores=placement.server, home=context.home) as replica:
        idle = processes.rss_bytes(replica.pid)
        arm = _arm(context, replica)
        windows: list[Window] = [watched(arm.measure) for _ in range(1 + STEPS)]
    seen = [window.figures["rss_bytes"] for window in windows]
    growth = seen[-1] / seen[0] - 1
    target = Target(
        text="growth from 3,000 to 30,000 requests",
        value=100 * growth,
        limit=5,
        unit="%",
        is_ceiling=True,
    )
    counts = ["0", *[f"{FIRST * (step + 1):,}" for step in range(len(seen))]]
    rows = [[count, f"{rss / MIB:.1f}"] for count, rss in zip(counts, [idle, *seen], strict=True)]
    return SuiteResult(
        name="memory",
        table=Table(headings=["requests", "resident MiB"], rows=rows),
        targets=[target],
        rounds={arm.name: windows},
    )


def _arm(context: Context, replica: systems.System) -> Arm:
    payloads = _payloads(context, replica)
    load = closed.Load(
        index=write_payloads(payloads, context.home / "payloads"),
        connections=CONNECTIONS,
        seconds=120,
        cores=context.placement.load,
    )
    argv = closed.client_argv(f"127.0.0.1:{replica.http}", load, requests=FIRST)

    def measure() -> dict[str, float]:
        figures = closed.run_tool(
            argv, cores=load.cores, seconds=load.seconds, read=closed.read_json_line
        )
        return {**figures, "rss_bytes": processes.rss_bytes(replica.pid)}

    return Arm(name=systems.REPLICA, measure=measure)


def _payloads(context: Context, replica: systems.System) -> list[Payload]:
    random = np.random.default_rng(models.SEED)
    payloads = []
    for rows in range(1, 33):
        inputs = {"input": random.standard_normal((rows, models.FEATURES)).astype(np.float32)}
        expected = models.run_bare(context.models[MODEL], inputs)
        for payload in (json_payload(MODEL, inputs), binary_payload(MODEL, inputs)):
            verify.check_http(replica.name, replica.http, payload, expected)
            payloads.append(payload)
    return payloads
