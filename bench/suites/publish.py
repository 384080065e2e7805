"""How soon does Envoy act on a changed weight, and what does it cost to read what it counted?

A gateway alone, with endpoints of two versions each that nobody answers for: one weight is changed
by one, published, and acknowledged. Envoy has one worker.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.context import Context
from bench.results import SuiteResult, Table, Target, cell
from bench.systems import Ports
from bench.windows import Arm, Rounds, figure, interleave
from headrace.gateway import (
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    RevisionTarget,
    SnapshotBuilder,
)

FEW: Final = 5
MANY: Final = 500
CHANGES: Final = 20
MILLISECONDS: Final = 1000.0


def run(context: Context) -> SuiteResult:
    """Change weights among few endpoints and among many."""
    arms = [
        Arm(name=_name(count), measure=lambda n=count: asyncio.run(_measure(n)))  # type: ignore[misc]  # n binds it
        for count in (FEW, MANY)
    ]
    rounds = interleave(arms, rounds=context.rounds)
    return SuiteResult(
        name="publish", table=_table(rounds), targets=_targets(rounds), rounds=rounds
    )


def _name(count: int) -> str:
    return f"{count} endpoints"


async def _measure(count: int) -> Mapping[str, float]:
    async with _gateway() as gateway:
        builder = SnapshotBuilder(gateway.settings)
        await gateway.start(builder.build(_endpoints(count, weight=1)))
        published, read = [], []
        for weight in range(2, 2 + CHANGES):
            endpoints = _endpoints(count, weight=weight)
            began = time.perf_counter()
            await gateway.publish(builder.build(endpoints))
            published.append(time.perf_counter() - began)
            began = time.perf_counter()
            await gateway.arm_statistics({endpoints[0].name})
            read.append(time.perf_counter() - began)
    return {
        "publish_ms": _median(published),
        "publish_worst_ms": max(published) * MILLISECONDS,
        "read_ms": _median(read),
    }


@contextlib.asynccontextmanager
async def _gateway() -> AsyncIterator[EnvoyGateway]:
    ports = Ports.free()
    with tempfile.TemporaryDirectory(prefix="hr-publish-") as directory:
        settings = EnvoySettings(
            run_dir=Path(directory) / "envoy",
            http_port=ports.http,
            grpc_port=ports.grpc,
            concurrency=1,
            access_log=False,
        )
        gateway = EnvoyGateway(settings)
        try:
            yield gateway
        finally:
            if gateway.pid is not None:
                os.kill(gateway.pid, signal.SIGKILL)
                await gateway.wait()


def _endpoints(count: int, *, weight: int) -> Sequence[EndpointRoute]:
    """`count` endpoints, of which the first gives its new version `weight` percent."""
    return [
        EndpointRoute(
            name=f"endpoint-{i}", arms=tuple(_arms(i, weight if i == 0 else 10)), timeout_s=30
        )
        for i in range(count)
    ]


def _arms(endpoint: int, weight: int) -> Iterator[RevisionTarget]:
    for version, share in (("2", weight), ("1", 100 - weight)):
        address = f"unix:/run/headrace/e{endpoint}-{version}.sock"
        yield RevisionTarget(version=version, replicas=(address,), weight=share)


def _median(values_s: Sequence[float]) -> float:
    return sorted(values_s)[len(values_s) // 2] * MILLISECONDS


def _table(rounds: Rounds) -> Table:
    rows = [
        [
            _name(count),
            *(
                cell(figure(rounds, _name(count), what), 1)
                for what in ("publish_ms", "publish_worst_ms", "read_ms")
            ),
        ]
        for count in (FEW, MANY)
    ]
    headings = ["gateway", "changed weight, ms", f"worst of {CHANGES}, ms", "arms read, ms"]
    return Table(headings=headings, rows=rows)


def _targets(rounds: Rounds) -> list[Target]:
    return [
        Target(
            text=f"a changed weight in force among {_name(count)}",
            value=figure(rounds, _name(count), "publish_ms").median,
            limit=limit,
            unit="ms",
            is_ceiling=True,
        )
        for count, limit in ((FEW, 20.0), (MANY, 100.0))
    ]
