"""Weights of an upstream's servers in a real Envoy: share of prompts, connections, bad metrics."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.control.base.ownership import ProcessOwner
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.core import SystemClock
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import EndpointRoute, EnvoyGateway, EnvoySettings, RevisionTarget
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
HOSTS = ("127.0.0.1", "127.0.0.2")
ANSWER = {"id": "c", "object": "chat.completion", "model": "chat", "choices": []}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Server:
    """A server of OpenAI's API with metrics."""

    metrics: bytes | None = b"vllm:num_requests_waiting 0.0\n"
    status: int = 200
    chats: int = 0
    polls: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    hold: asyncio.Event | None = None

    def queue(self, waiting: float) -> None:
        self.metrics = (
            "# TYPE vllm:num_requests_waiting gauge\n"
            'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
            f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}\n'
            'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0\n'
        ).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                await reader.readexactly(length)
                if head.startswith("get /metrics"):
                    self.polls += 1
                    if self.metrics is None:
                        await asyncio.sleep(60)
                    body, status = self.metrics or b"", self.status
                else:
                    self.chats += head.startswith("post")
                    if self.hold is not None and "x-hold" in head:
                        await self.hold.wait()
                    body, status = json.dumps(ANSWER).encode(), 200
                kind = b"content-type: application/json"
                writer.write(
                    b"HTTP/1.1 %d OK\r\n%b\r\ncontent-length: %d\r\n\r\n%b"
                    % (status, kind, len(body), body)
                )
                await writer.drain()
        writer.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory)


@dataclass
class Plane:
    supervisor: EnvoySupervisor
    servers: tuple[Server, ...]
    http: httpx.AsyncClient
    route: EndpointRoute

    async def shares(self, start: int, count: int = 200, **headers: str) -> list[float]:
        before = [server.chats for server in self.servers]
        for i in range(start, start + count):
            message = {"role": "system", "content": f"prompt {i}"}
            answer = await self.http.post(
                "/v1/chat/completions",
                json={"model": "chat", "messages": [message]},
                headers=headers,
            )
            assert answer.status_code == 200, answer.text
        return [(s.chats - n) / count for s, n in zip(self.servers, before, strict=True)]

    def cluster(self) -> dict[str, Any]:
        text = json.loads((self.supervisor.settings.run_dir / "cds.json").read_text())
        (cluster,) = [c for c in text["resources"] if c["name"] == "chat~1"]
        return dict(cluster)

    def weights(self) -> list[int]:
        (path,) = self.supervisor.settings.run_dir.glob("servers.*.json")
        (group,) = json.loads(path.read_text())["resources"][0]["endpoints"]
        return [server["load_balancing_weight"] for server in group["lb_endpoints"]]


@contextlib.asynccontextmanager
async def running(directory: Path, **of_second: Any) -> AsyncIterator[Plane]:
    port = free_port()
    servers = (Server(), Server(**of_second))
    listening = [
        await asyncio.start_server(server.serve, host, port)
        for server, host in zip(servers, HOSTS, strict=True)
    ]

    async def resolve(host: str) -> tuple[str, ...]:
        return HOSTS if host == "localhost" else ()

    settings = EnvoySettings(
        run_dir=directory / "gw", http_port=free_port(), grpc_port=free_port(), concurrency=1
    )
    supervisor = EnvoySupervisor(
        envoy=EnvoyGateway(settings),
        owner=ProcessOwner.of(directory),
        record_path=directory / "gateway.json",
        routes_path=directory / "routes.json",
        clock=SystemClock(),
        resolve=resolve,
    )
    upstream = UpstreamSpec(
        url=f"http://localhost:{port}", protocol=UpstreamProtocol.OPENAI, health_interval_s=1.0
    )
    arm = RevisionTarget(version="1", replicas=(), weight=100, upstream=upstream)
    route = EndpointRoute(name="chat", arms=(arm,), timeout_s=30.0)
    await supervisor.open((route,))
    running = asyncio.create_task(supervisor.run())
    base = f"http://127.0.0.1:{settings.http_port}"
    async with httpx.AsyncClient(base_url=base, timeout=30.0) as http:
        try:
            yield Plane(supervisor, servers, http, route)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await supervisor.stop(drain_s=0.1)
            for server in listening:
                server.close()
            for writer in (writer for server in servers for writer in server.writers):
                writer.close()
            await asyncio.sleep(0.1)


async def until(holds: Any, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  # files and servers set no event
            await asyncio.sleep(0.05)


async def test_a_server_with_a_queue_gets_few_new_prompts_and_no_stream_is_cut(
    directory: Path,
) -> None:
    async with running(directory) as plane:
        one, two = plane.servers
        await until(lambda: plane.cluster()["type"] == "EDS")
        await until(lambda: plane.weights() == [8, 8])
        equal = await plane.shares(0)
        published = (plane.supervisor.settings.run_dir / "cds.json").read_text()
        one.hold = two.hold = asyncio.Event()
        held = [asyncio.create_task(plane.shares(i, 1, **{"x-hold": "1"})) for i in range(6)]
        await asyncio.sleep(0.5)

        two.queue(20)
        await until(lambda: plane.weights() == [8, 1])
        await asyncio.sleep(0.5)  # Envoy reads the file
        assert not any(task.done() for task in held)
        one.hold.set()
        await asyncio.gather(*held)
        queued = await plane.shares(1000)
        assert 0 < queued[1] < 0.25 < equal[1]

        two.queue(0)
        await until(lambda: plane.weights() == [8, 8])
        await asyncio.sleep(0.5)
        assert await plane.shares(0) == equal
        assert (plane.supervisor.settings.run_dir / "cds.json").read_text() == published


async def test_metrics_that_are_none_count_as_an_empty_queue(directory: Path) -> None:
    async with running(directory) as plane:
        two = plane.servers[1]
        await until(lambda: plane.cluster()["type"] == "EDS")
        for status, metrics in (
            (200, None),
            (200, b"x" * (10 << 20)),
            (200, b"vllm:num_requests_waiting NaN\n"),
            (200, b"tgi_queue_size -5\n"),
            (200, b"\xff\x00"),
            (500, b"vllm:num_requests_waiting 20\n"),
        ):
            two.status, two.metrics, polls = status, metrics, two.polls
            await until(lambda polls=polls: two.polls >= polls + 3)

            assert plane.weights() == [8, 8]
        await plane.shares(0, 20)


async def test_requests_go_on_while_an_upstream_gets_weights_and_a_new_control_plane_keeps_them(
    directory: Path,
) -> None:
    async with running(directory, metrics=b"") as plane:
        one, two = plane.servers
        one.metrics = b""
        await until(lambda: one.polls >= 1)
        assert plane.cluster()["type"] == "STRICT_DNS"
        one.hold = two.hold = asyncio.Event()
        held = [asyncio.create_task(plane.shares(i, 1, **{"x-hold": "1"})) for i in range(4)]
        one.queue(0)
        two.queue(0)
        sent = 0
        while plane.cluster()["type"] != "EDS":
            await plane.shares(sent := sent + 1, 1)
        await plane.shares(sent, 100)
        one.hold.set()
        await asyncio.gather(*held)

        old = plane.supervisor
        published = (old.settings.run_dir / "cds.json").read_text()
        new = EnvoySupervisor(
            envoy=EnvoyGateway(old.settings), owner=old.owner, record_path=old.record_path,
            routes_path=old.routes_path, clock=SystemClock(), resolve=old.resolve,
        )  # fmt: skip
        assert await new.open((plane.route,))
        await new.publish((plane.route,))
        assert (old.settings.run_dir / "cds.json").read_text() == published
