"""Does an attack cost anybody else anything? A system and a lone replica, watched meanwhile."""

import http.client
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import httpx
import psutil

from headrace.testing import models
from tests.e2e.control.system import System, replicas
from tests.e2e.replicas import Replica, running
from tests.e2e.serving.raw import BODY, post
from tests.e2e.system.steady import SteadyLoad
from tests.ports import free_port

STEADY_RATE: Final = 20.0
"""Requests per second of well-behaved callers, at the gateway and at the lone replica each."""
SETTLES_WITHIN_S: Final = 90.0
"""The gateway keeps connections to replicas for a minute after a burst; on a slow machine many."""
GROWTH_BYTES: Final = (72 if "COVERAGE_RUN" in os.environ else 48) << 20
"""What allocators may keep of what an attack made them take; a leak shows when it is repeated.

The tracer of a run with coverage keeps more.
"""
POOL: Final = 80
"""Idle connections that the gateway may keep to replicas after a burst."""
POOL_THREADS: Final = 32
"""Thread pools start theirs one by one, as they are used."""
HEADERS_TIMEOUT_S: Final = 2.0
BODY_TIMEOUT_S: Final = 4.0
IDLE_TIMEOUT_S: Final = 60.0
MAX_BODY_BYTES: Final = 8 << 20
GRPC_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
_MODEL: Final = b"\x0a\x01m"
_RAW: Final = b"\x3a\x80\x80\x80\x02"
"""The head of a `ModelInferRequest` for `m`, and of 4 MiB of raw contents in it."""
MAX_CONNECTIONS: Final = 300
CONNECTIONS: Final = {
    "max": MAX_CONNECTIONS,
    "idle_timeout_s": IDLE_TIMEOUT_S,
    "headers_timeout_s": HEADERS_TIMEOUT_S,
    "request_timeout_s": BODY_TIMEOUT_S,
}
TIMEOUTS: Final = {
    "idle_timeout_s": IDLE_TIMEOUT_S,
    "header_timeout_s": HEADERS_TIMEOUT_S,
    "body_timeout_s": BODY_TIMEOUT_S,
}


@dataclass(frozen=True, slots=True)
class Door:
    """Where an attack knocks: HTTP/1.1 and, on the gateway, HTTP/2 at `port`, gRPC at `grpc`."""

    name: str
    port: int
    grpc: int

    def connect(self, timeout_s: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one process holds, without the connections of the well-behaved.

    `pool`: Unix sockets, which Envoy keeps for a while after a burst.
    """

    rss: int
    descriptors: int
    pool: int
    threads: int


@dataclass(slots=True, kw_only=True)
class Site:
    """A system (control plane, gateway, replicas of `m` and `words`) and a lone replica of `m`."""

    system: System
    lone: Replica
    gateway: Door
    replica: Door
    admin_port: int
    metrics_port: int
    processes: Mapping[str, psutil.Process]
    steady: list[tuple[Door, SteadyLoad]] = field(default_factory=list)

    def door(self, name: str) -> Door:
        return {"gateway": self.gateway, "replica": self.replica}[name]

    def usage(self) -> dict[str, Usage]:
        """By process. Attacks nest: others' steady load may go on, on more connections."""
        doors = {"gateway": self.gateway, "lone replica": self.replica}
        return {
            name: usage_of(
                process,
                others=sum(
                    load.connections for door, load in self.steady if door is doors.get(name)
                ),
            )
            for name, process in self.processes.items()
        }

    def is_ready(self) -> bool:
        return bool(self.system.status()["ready"]) and all(
            httpx.get(f"{door.url}/v2/health/ready").status_code == 200
            for door in (self.gateway, self.replica)
        )

    def logs(self) -> str:
        run = Path(self.system.home) / "logs"
        texts = [path.read_text(errors="replace") for path in run.rglob("*.log")]
        return "\n".join([self.system.log_text(), self.lone.log_text(), *texts])

    @contextmanager
    def unharmed(self, *, growth_bytes: int = GROWTH_BYTES, pool: int = POOL) -> Iterator[None]:
        """Run an attack: nobody else loses a request, and afterwards everything is as it was."""
        before = self.usage()
        alive = {name: process.pid for name, process in self.processes.items()}
        doors = self.gateway, self.replica
        loads = [SteadyLoad(f"127.0.0.1:{door.port}", [post()], rate=STEADY_RATE) for door in doors]
        others = list(self.steady)
        with ExitStack() as stack:
            for load in loads:
                stack.enter_context(load.flowing())
            stack.callback(self.steady.__setitem__, slice(None), others)
            self.steady[:] = [*others, *zip(doors, loads, strict=True)]
            _go_on(loads)
            yield
            _go_on(loads)
        for load in loads:
            assert load.failures == 0, (load.statuses, load.broken, load.sent)
        assert all(process.is_running() for process in self.processes.values()), alive
        self._settle(before, growth_bytes, pool)

    def _settle(self, before: Mapping[str, Usage], growth_bytes: int, pool: int) -> None:
        until = time.monotonic() + SETTLES_WITHIN_S
        while True:
            wrong = self._differences(before, growth_bytes, pool)
            if not wrong:
                return
            assert time.monotonic() < until, "\n".join(wrong)
            time.sleep(0.1)

    def _differences(self, before: Mapping[str, Usage], growth_bytes: int, pool: int) -> list[str]:
        found = []
        for name, now in self.usage().items():
            was = before[name]
            if now.rss > was.rss + growth_bytes:
                found.append(f"{name}: {(now.rss - was.rss) >> 20} MiB more memory")
            if now.descriptors > was.descriptors:
                found.append(f"{name}: {now.descriptors - was.descriptors} descriptors more")
            if now.pool > was.pool + pool:
                found.append(f"{name}: {now.pool - was.pool} Unix sockets more")
            if now.threads > was.threads + POOL_THREADS:
                found.append(f"{name}: {now.threads - was.threads} threads more")
        # Last, for it opens connections itself.
        return found if self.is_ready() else [*found, "it is not ready"]


def _go_on(loads: Sequence[SteadyLoad]) -> None:
    """Wait until each of the well-behaved has sent a little more."""
    wanted = [(load, load.sent + 3) for load in loads]
    until = time.monotonic() + SETTLES_WITHIN_S
    while any(load.sent < count for load, count in wanted):
        assert time.monotonic() < until, "a well-behaved caller is stuck"
        time.sleep(0.01)


def usage_of(process: psutil.Process, *, others: int) -> Usage:
    pool = len(process.net_connections(kind="unix"))
    return Usage(
        rss=process.memory_info().rss,
        descriptors=process.num_fds() - pool - others,
        pool=pool,
        threads=process.num_threads(),
    )


@contextmanager
def started(**connections: float) -> Iterator[Site]:
    """Everything up and warm; ended by pid whatever happens. Changes are for the gateway."""
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory, ExitStack() as stack:
        folder = Path(directory)
        system = System(folder / "home")
        stack.callback(system.close)
        (folder / "m.onnx").write_bytes(models.mlp())
        (folder / "words.onnx").write_bytes(models.strings())
        system.start(spec=_spec(folder, {**CONNECTIONS, **connections}))
        grpc_port = free_port()
        lone = stack.enter_context(
            running(
                folder,
                folder / "m.onnx",
                grpc_port=grpc_port,
                max_body_bytes=MAX_BODY_BYTES,
                **TIMEOUTS,
            )
        )
        system.wait_ready()
        yield _site(system, lone, grpc_port)


def _spec(folder: Path, connections: Mapping[str, float]) -> dict[str, Any]:
    gateway = {"max_body_bytes": MAX_BODY_BYTES, "connections": connections}
    endpoints = [
        {"name": name, "model": str(folder / f"{name}.onnx"), "labels": labels}
        for name, labels in (("m", {"prob": ["no", "yes"]}), ("words", {}))
    ]
    return {"version": 1, "gateway": gateway, "endpoints": endpoints}


def _site(system: System, lone: Replica, grpc_port: int) -> Site:
    where = system.where()
    gateway_port = urlsplit(where.http_url).port
    admin_port = urlsplit(where.admin_url).port
    metrics_port = urlsplit(where.metrics_url).port
    assert gateway_port
    assert admin_port
    assert metrics_port
    assert system.process
    status = system.status()
    processes = {
        "control plane": psutil.Process(system.process.pid),
        "gateway": system.gateway(),
        "lone replica": psutil.Process(lone.process.pid),
        **{
            f"replica of {name}": psutil.Process(replicas(status, name)[0]["pid"])
            for name in ("m", "words")
        },
    }
    site = Site(
        system=system,
        lone=lone,
        gateway=Door("gateway", gateway_port, int(where.grpc_target.rpartition(":")[2])),
        replica=Door("replica", lone.port, grpc_port),
        admin_port=admin_port,
        metrics_port=metrics_port,
        processes=processes,
    )
    _warm(site)
    return site


def _warm(site: Site) -> None:
    """What only the first callers cost: imports, pools, arenas."""
    for door in (site.gateway, site.replica):
        with httpx.Client(base_url=door.url) as client:
            for _ in range(50):
                client.post("/v2/models/m/infer", content=BODY)
    with grpc.insecure_channel(site.replica.target) as channel:
        # A lone replica's own front keeps arenas of the size of the largest messages.
        send = channel.unary_unary(GRPC_PATH)
        for _ in range(8):
            with suppress(grpc.RpcError):
                send(_MODEL + b"\x2a\x00" * 199_000, timeout=30)
            with suppress(grpc.RpcError):
                send(_MODEL + _RAW + bytes(4 << 20), timeout=30)
    for port in (site.admin_port, site.metrics_port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for path in ("/metrics", "/api/v1/status"):
            with suppress(http.client.HTTPException):
                connection.request("GET", path)
                connection.getresponse().read()
        connection.close()
