"""A place for gateways and stand-in replicas of one test."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from headrace.gateway import (
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    RevisionTarget,
    build_snapshot,
)
from tests.ports import free_port

UP_WITHIN_S = 30.0


@dataclass(kw_only=True)
class StandIn:
    """A stand-in replica's process and address."""

    name: str
    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def seen(self) -> list[Any]:
        """Every request that it got: path, headers, body's length."""
        transport = httpx.HTTPTransport(uds=self.address.removeprefix("unix:"))
        with httpx.Client(transport=transport, base_url="http://standin") as http:
            found: list[Any] = http.get("/test/seen").json()
            return found


@dataclass
class Lab:
    """What one test started."""

    directory: Path
    replicas: list[StandIn] = field(default_factory=list)
    gateways: list[EnvoyGateway] = field(default_factory=list)

    def replica(self, name: str) -> StandIn:
        path = self.directory / f"{name}-{len(self.replicas)}.sock"
        script = Path(__file__).with_name("standin.py")
        process = subprocess.Popen([sys.executable, str(script), str(path), name])
        found = StandIn(name=name, address=f"unix:{path}", process=process)
        self.replicas.append(found)
        deadline = time.monotonic() + UP_WITHIN_S
        while not Path(f"{path}.up").exists():
            assert process.poll() is None, "the stand-in ended"
            assert time.monotonic() < deadline, "the stand-in does not come up"
            time.sleep(0.005)
        return found

    def settings(self, name: str = "gw", **changes: Any) -> EnvoySettings:
        values: dict[str, Any] = {
            "run_dir": self.directory / name,
            "http_port": free_port(),
            "grpc_port": free_port(),
            "concurrency": 1,
            **changes,
        }
        return EnvoySettings(**values)

    async def start(
        self,
        *endpoints: EndpointRoute,
        **changes: Any,
    ) -> EnvoyGateway:
        gateway = EnvoyGateway(self.settings(**changes))
        self.gateways.append(gateway)
        await gateway.start(build_snapshot(gateway.settings, endpoints))
        return gateway

    async def publish(self, gateway: EnvoyGateway, *endpoints: EndpointRoute) -> None:
        await gateway.publish(build_snapshot(gateway.settings, endpoints))

    def close(self) -> None:
        pids = [gateway.pid for gateway in self.gateways]
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for replica in self.replicas:
            replica.kill()


def endpoint(
    name: str, *replicas: StandIn, version: str = "1", timeout_s: float | None = 30.0
) -> EndpointRoute:
    addresses = tuple(replica.address for replica in replicas)
    revision = RevisionTarget(version=version, replicas=addresses, weight=100)
    return EndpointRoute(name=name, arms=(revision,), timeout_s=timeout_s)


def split(name: str, *arms: tuple[str, int, StandIn]) -> EndpointRoute:
    revisions = tuple(
        RevisionTarget(version=version, replicas=(replica.address,), weight=weight)
        for version, weight, replica in arms
    )
    return EndpointRoute(name=name, arms=revisions, timeout_s=30.0)


def http_url(gateway: EnvoyGateway, path: str = "") -> str:
    return f"http://127.0.0.1:{gateway.settings.http_port}{path}"


def grpc_target(gateway: EnvoyGateway) -> str:
    return f"127.0.0.1:{gateway.settings.grpc_port}"


async def arms(gateway: EnvoyGateway, path: str, callers: Sequence[Mapping[str, str]]) -> list[str]:
    """Which replica answers each caller; by hand, since a client library takes most of a test."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.http_port)
    found = []
    for headers in callers:
        lines = [f"GET {path} HTTP/1.1", "host: m", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        found.append(str(json.loads(await reader.readexactly(length))["replica"]))
    writer.close()
    return found


def client(gateway: EnvoyGateway) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=64)
    return httpx.AsyncClient(base_url=http_url(gateway), timeout=30.0, limits=limits)
