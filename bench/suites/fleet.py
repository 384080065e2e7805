"""How long does one change take among 500 endpoints of two versions each?

The reconciler, its plan and Envoy are real; the replicas are sockets that say they are ready.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from bench.context import Context
from bench.results import SuiteResult, Table, Target
from headrace.control.base.ownership import ProcessOwner
from headrace.control.base.ports import pick_ports
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.reconcile.publication import RoutePublication
from headrace.control.reconcile.reconciler import Reconciler
from headrace.core import EndpointName, ReplicaSettings, SystemClock
from headrace.gateway import EnvoyGateway, EnvoySettings, make_private

ENDPOINTS: Final = 500
_CHANGES: Final = 30
_LIMIT_MS: Final = 100.0
_FEW_LIMIT_MS: Final = 20.0
_READY: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_START_TIMEOUT_S: Final = 120.0


class _Sleeper:
    """A process that does nothing, for ever."""

    pid = 1

    async def wait(self) -> int:
        """Never ends by itself."""
        await asyncio.Event().wait()
        return 0


@dataclass(slots=True)
class _Sockets:
    """Stands in for the driver of replicas: each is a socket that says it is ready."""

    directory: Path
    stack: AsyncExitStack
    starting: list[asyncio.Task[None]] = field(default_factory=list)

    def address_of(self, serial: int) -> str:
        return f"unix:{self.directory}/r{serial}.sock"

    def start(self, *, name: str, serial: int, revision: object) -> _Sleeper:
        del name, revision
        self.starting.append(asyncio.create_task(self._listen(serial)))
        return _Sleeper()

    async def _listen(self, serial: int) -> None:
        path = self.address_of(serial).removeprefix("unix:")
        server = await asyncio.start_unix_server(_answer, path)
        self.stack.push_async_callback(_close, server)

    def note_ready(self, name: str) -> None:
        """Nothing is kept."""

    def process_of(self, name: str) -> None:
        """Nothing was adopted."""


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_READY)
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _close(server: asyncio.Server) -> None:
    server.close()


def run(context: Context) -> SuiteResult:
    """Change one weight, many times, among many endpoints and among few."""
    changes = 5 if context.quick else _CHANGES
    rows, targets = [], []
    for count, limit in ((ENDPOINTS, _LIMIT_MS), (5, _FEW_LIMIT_MS)):
        took = asyncio.run(_measure(context.home / f"fleet-{count}", count, changes))
        median = statistics.median(took)
        rows.append([str(count), f"{median:.1f}", f"{min(took):.1f}", f"{max(took):.1f}"])
        text = f"a weight in force, among {count} endpoints"
        targets.append(Target(text=text, value=median, limit=limit, unit="ms", is_ceiling=True))
    table = Table(headings=["endpoints", "median ms", "least", "most"], rows=rows)
    return SuiteResult(name="fleet", table=table, targets=targets)


async def _measure(home: Path, count: int, changes: int) -> list[float]:
    """Milliseconds from the wish to Envoy's acknowledgement, for each of `changes`."""
    async with AsyncExitStack() as stack:
        reconciler, keeper = _system(make_private(home), stack)
        await keeper.open(())
        desired = DesiredState(
            generation=1, endpoints=tuple(_endpoint(i, 50) for i in range(count))
        )
        reconciler.set_desired(desired)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(keeper.run()), group.create_task(reconciler.run())]
            await _until(reconciler, lambda: _is_in_force(reconciler, desired))
            took = [await _change(reconciler, weight) for weight in range(1, changes + 1)]
            for task in tasks:
                task.cancel()
        await keeper.stop(drain_s=0.0)
    return took


def _system(home: Path, stack: AsyncExitStack) -> tuple[Reconciler, EnvoySupervisor]:
    sockets = make_private(home / "s")
    ports = pick_ports("127.0.0.1", {"http": 0, "grpc": 0})
    keeper = EnvoySupervisor(
        envoy=EnvoyGateway(
            EnvoySettings(
                run_dir=make_private(home / "e"), http_port=ports["http"], grpc_port=ports["grpc"]
            )
        ),
        owner=ProcessOwner.of(home),
        record_path=home / "gateway.json",
        routes_path=home / "routes.json",
        clock=SystemClock(),
    )
    reconciler = Reconciler(
        driver=_Sockets(sockets, stack),  # type: ignore[arg-type]  # what a start needs of a driver
        publication=RoutePublication(publisher=keeper),
        clock=SystemClock(),
        drain_timeout_s=1.0,
    )
    return reconciler, keeper


async def _change(reconciler: Reconciler, weight: int) -> float:
    """Milliseconds until one endpoint's new weight is in force."""
    old = reconciler.desired
    _, *rest = old.endpoints
    changed = msgspec.structs.replace(
        old, generation=old.generation + 1, endpoints=(_endpoint(0, weight), *rest)
    )
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    reconciler.set_desired(changed)
    await _until(reconciler, lambda: _is_in_force(reconciler, changed))
    return (time.perf_counter() - began) * 1e3


async def _until(reconciler: Reconciler, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_START_TIMEOUT_S):
        while not condition():
            await reconciler.changes.wait()


def _is_in_force(reconciler: Reconciler, desired: DesiredState) -> bool:
    published = reconciler.publication.published or ()
    if len(published) < len(desired.endpoints):
        return False
    endpoint, route = desired.endpoints[0], published[0]
    weights = [arm.weight for arm in route.arms if arm.replicas]
    last = all(arm.replicas for arm in published[-1].arms)
    return weights == [arm.weight for arm in endpoint.arms] and last


def _endpoint(number: int, weight: int) -> DesiredEndpoint:
    name = EndpointName(f"model-{number}")
    arms = []
    for version, share in (("1", 100 - weight), ("2", weight)):
        settings = ReplicaSettings(model_name=name, model_version=version, path="/none")
        revision = make_revision(endpoint=name, model=f"{name}:{version}", settings=settings)
        arms.append(DesiredArm(revision=revision, weight=share, replicas=1))
    return DesiredEndpoint(name=name, timeout_s=30.0, arms=tuple(arms))
