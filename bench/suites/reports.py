"""How many replicas can one control plane ask every second? What a round of reports costs it.

The asking is real, each report as large as one that a replica with full histograms gives; the
replicas are sockets of another process that hand it out.
"""

import asyncio
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import msgspec

from bench.context import Context
from bench.results import SuiteResult, Table, Target
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.reconcile.reports import Reports
from headrace.observe.histogram import SECONDS_BOUNDS
from headrace.serving.telemetry.report import Observe, ReplicaReport

COUNTS: Final = (10, 100, 1_000)
_ROUNDS: Final = 10
_LIMIT_MS: Final = 1_000.0
"""A round is asked for every second."""
_START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """Milliseconds of one round: on the clock, and of the processor."""

    wall_ms: float
    cpu_ms: float


def run(context: Context) -> SuiteResult:
    """Ask few replicas and many."""
    rows, targets = [], []
    for count in COUNTS:
        took = _measure(context.home / f"r{count}", count, 3 if context.quick else _ROUNDS)
        wall = statistics.median(one.wall_ms for one in took)
        cpu = statistics.median(one.cpu_ms for one in took)
        worst = max(one.wall_ms for one in took)
        rows.append([str(count), f"{wall:.1f}", f"{worst:.1f}", f"{cpu:.1f}"])
        text = f"a round of reports of {count} replicas"
        targets.append(Target(text=text, value=wall, limit=_LIMIT_MS, unit="ms", is_ceiling=True))
    headings = ["replicas", "a round, ms", "worst", "processor, ms"]
    return SuiteResult(name="reports", table=Table(headings=headings, rows=rows), targets=targets)


def _measure(directory: Path, count: int, rounds: int) -> list[_Round]:
    directory.mkdir()
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=_serve, args=(str(directory), count, theirs), daemon=True)
    child.start()
    try:
        if not ours.poll(_START_TIMEOUT_S):
            raise TimeoutError("the sockets did not come up")
        return asyncio.run(_ask(directory, count, rounds))
    finally:
        child.terminate()
        child.join()


def _replica(directory: Path, number: int) -> Replica:
    return Replica(
        name=f"r{number}",
        serial=number,
        endpoint="model",
        version="1",
        revision_id="1",
        address=f"unix:{directory}/{number}.sock",
        phase=ReplicaPhase.READY,
        since=0.0,
        pid=1,
    )


async def _ask(directory: Path, count: int, rounds: int) -> list[_Round]:
    replicas = [_replica(directory, number) for number in range(count)]
    names = {replica.name for replica in replicas}
    reports = Reports(replicas={replica.name: replica for replica in replicas})
    await reports.request_all(replicas, lambda _: Observe())
    took = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        await reports.request_all(replicas, lambda _: Observe())
        took.append(
            _Round(
                wall_ms=(time.perf_counter() - wall) * 1e3,
                cpu_ms=(time.process_time() - cpu) * 1e3,
            )
        )
        missing = [name for name in names if reports.together(name) is None]
        assert not missing, f"{len(missing)} replicas did not answer"
    return took


def _serve(directory: str, count: int, ready: Connection) -> None:
    """Hand out reports until killed."""
    asyncio.run(_listen(Path(directory), count, ready))


async def _listen(directory: Path, count: int, ready: Connection) -> None:
    buckets = list(range(len(SECONDS_BOUNDS) + 1))
    servers = []
    for number in range(count):
        report = ReplicaReport(
            replica=f"r{number}",
            model="model",
            version="1",
            at=1.0,
            ready=True,
            received=10**9,
            answered=10**9,
            bounds_s=list(SECONDS_BOUNDS),
            queue_wait=[10**6 + one for one in buckets],
            request=[10**6 + one for one in buckets],
        )
        body = msgspec.json.encode(report)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()

        async def answer(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes = head + body
        ) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(text)
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_unix_server(answer, directory / f"{number}.sock"))
    ready.send(None)
    await asyncio.Event().wait()
