"""What does it cost to be seen? Throughput through Envoy with default observability and without.

A 26 kB MLP, one row, 32 connections. Envoy and the replica share one core, the load has another.
The blind system counts nothing by endpoint, writes no access log, and its replica keeps no
histograms. The one as it is by default is scraped once a second meanwhile, 15 times as often as
Prometheus does by default.
"""

import asyncio
import contextlib
import os
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final

from bench import cpu, models, processes, systems, verify
from bench.context import Context, http_arm, one_row
from bench.payloads import json_payload
from bench.results import SuiteResult, Table, Target, cell
from bench.windows import Arm, Rounds, figure, interleave, ratio
from headrace.gateway import (
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    GatewayUnavailableError,
    RevisionTarget,
    build_snapshot,
)

MODEL: Final = "mlp"
CONNECTIONS: Final = 32
LIMIT: Final = 0.95
SCRAPE_S: Final = 1.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

BLIND: Final = "nothing is observed"
COUNTED: Final = "counts and histograms"
DEFAULT: Final = "default: and a log, scraped"


def run(context: Context) -> SuiteResult:
    """Measure the same requests with and without being looked at."""
    return asyncio.run(_run(context))


async def _run(context: Context) -> SuiteResult:
    path, cores, home = context.models[MODEL], context.placement.server, context.home
    row = one_row()
    payload = json_payload(MODEL, row)
    async with contextlib.AsyncExitStack() as stack:
        blind, seen = home / "blind.sock", home / "seen.sock"
        unseen = stack.enter_context(
            systems.replica(
                path,
                name="blind",
                model_name=MODEL,
                cores=cores,
                home=home,
                uds=blind,
                module="bench.servers.blind_replica",
            )
        )
        replica = stack.enter_context(
            systems.replica(path, name=MODEL, cores=cores, home=home, uds=seen)
        )
        arms = []
        for number, (name, socket) in enumerate(((BLIND, blind), (COUNTED, seen), (DEFAULT, seen))):
            settings = _settings(
                home / f"g{number}", counts_all=name != BLIND, access_log=name == DEFAULT
            )
            gateway = await stack.enter_async_context(_gateway(settings, socket))
            cpu.pin(gateway.pid or 0, set(cores))
            verify.check_http(name, settings.http_port, payload, models.run_bare(path, row))
            load = context.load([payload], name=f"observe{number}", connections=CONNECTIONS)
            arm = http_arm(name, settings.http_port, load)
            pids = {"envoy_us": gateway.pid or 0, "replica_us": unseen.pid}
            if name != BLIND:
                pids["replica_us"] = replica.pid
            arm = _with_cost(arm, pids, load.seconds)
            arms.append(_scraped(arm, gateway, replica.url("/metrics")) if name == DEFAULT else arm)
        rounds = interleave(arms, rounds=context.rounds)
    return SuiteResult(
        name="observe", table=_table(rounds), targets=_targets(rounds), rounds=rounds
    )


def _with_cost(arm: Arm, pids: Mapping[str, int], seconds: float) -> Arm:
    """`arm`, which also tells how long processes worked for each request."""

    def measure() -> Mapping[str, float]:
        before = {name: _worked_s(pid) for name, pid in pids.items()}
        figures = arm.measure()
        requests = figures["rps"] * seconds
        costs = {
            name: 1e6 * (_worked_s(pid) - before[name]) / requests for name, pid in pids.items()
        }
        return {**figures, **costs}

    return Arm(name=arm.name, measure=measure)


def _worked_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _scraped(arm: Arm, gateway: EnvoyGateway, metrics_url: str) -> Arm:
    """`arm`, of which all metrics are read again and again while it is measured."""

    def measure() -> Mapping[str, float]:
        with _scraping(gateway, metrics_url):
            return arm.measure()

    return Arm(name=arm.name, measure=measure)


@contextlib.contextmanager
def _scraping(gateway: EnvoyGateway, metrics_url: str) -> Iterator[None]:
    ended = threading.Event()

    async def scrape() -> None:
        await gateway.endpoint_statistics({MODEL})
        await gateway.stats()

    def scrape_on() -> None:
        while not ended.wait(SCRAPE_S):
            with contextlib.suppress(GatewayUnavailableError, OSError):
                asyncio.run(scrape())
                with urllib.request.urlopen(metrics_url, timeout=5) as answer:  # noqa: S310  # loopback
                    answer.read()

    thread = threading.Thread(target=scrape_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _settings(run_dir: Path, *, counts_all: bool, access_log: bool) -> EnvoySettings:
    http, grpc = processes.free_ports(2)
    return EnvoySettings(
        run_dir=run_dir,
        http_port=http,
        grpc_port=grpc,
        concurrency=1,
        counts_all=counts_all,
        access_log=access_log,
    )


@contextlib.asynccontextmanager
async def _gateway(settings: EnvoySettings, socket: Path) -> AsyncIterator[EnvoyGateway]:
    gateway = EnvoyGateway(settings)
    os.environ.update(processes.environment(systems.ENVOY))  # Envoy is one of ours, and says so
    arm = RevisionTarget(version="1", replicas=(f"unix:{socket}",), weight=100)
    await gateway.start(build_snapshot(settings, [EndpointRoute(name=MODEL, arms=(arm,))]))
    try:
        yield gateway
    finally:
        await gateway.stop(1.0)


def _table(rounds: Rounds) -> Table:
    return Table(
        headings=[
            "system",
            "requests/s",
            "times blind",
            "p50 us",
            "p99 us",
            "Envoy us",
            "replica us",
        ],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "rps")),
                cell(ratio(rounds, arm, BLIND, "rps"), 2),
                cell(figure(rounds, arm, "p50_us")),
                cell(figure(rounds, arm, "p99_us")),
                cell(figure(rounds, arm, "envoy_us"), 1),
                cell(figure(rounds, arm, "replica_us"), 1),
            ]
            for arm in rounds
        ],
    )


def _targets(rounds: Rounds) -> list[Target]:
    return [
        Target(
            text=f"throughput with {DEFAULT}, times blind",
            value=ratio(rounds, DEFAULT, BLIND, "rps").median,
            limit=LIMIT,
        )
    ]
