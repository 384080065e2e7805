"""A peer and Headrace, up and checked inside a `with` block, gone with all they started after."""

import http.client
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench import cpu, processes, systems
from bench.payloads import Payload
from bench.peers import wire
from bench.peers.catalog import Peer
from bench.peers.environments import ensure
from bench.peers.launch import Launch
from bench.peers.models import Model
from bench.peers.wire import Format, Wire
from bench.verify import WrongAnswerError, compare

HEADRACE: Final = "headrace"
VERIFIED: Final = 4
START_S: Final = 120.0
IDLE_S: Final = 0.5
MAX_IDLE_CORES: Final = 0.01
"""A server that uses more while nobody asks is stopped while another is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers. Ports are on loopback, 0 for none.

    `part`: under which name its processor time is counted. `idle_cores`: what it used while nobody
    asked. `ready_at`: when it gave its first answer, in monotonic time.
    """

    name: str
    part: str
    http: int
    json: Wire
    grpc: int = 0
    binary: Wire | None = None
    idle_cores: float = 0.0
    ready_at: float = 0.0

    def payloads(self, model: Model, *, binary: bool = False) -> list[Payload]:
        """Every request of the model, as this server takes them."""
        way = self.binary if binary else self.json
        assert way is not None, f"{self.name} takes no binary tensors"
        return [wire.payload(way, model.name, row) for row in model.rows]

    def check(self, model: Model) -> None:
        """Compare answers with bare ONNX Runtime's.

        Raises:
            WrongAnswerError: One differs, or is none.
        """
        for way in filter(None, (self.json, self.binary)):
            # Raw bytes are for models with one input, and V2's binary form for all.
            if way.format is Format.RAW and len(model.rows[0]) > 1:
                continue
            for row in model.rows[:VERIFIED]:
                expected = model.expected(row)
                given = wire.payload(way, model.name, row)
                body, headers = _post(self.name, self.http, given)
                compare(self.name, wire.answer(way, body, headers, expected), expected)


@contextmanager
def peer_server(peer: Peer, model: Model, *, cores: frozenset[int], home: Path) -> Iterator[Server]:
    """A peer with one model, ready and checked.

    Raises:
        StartError: It ended, or was not ready in time.
        WrongAnswerError: It answers something else than bare ONNX Runtime.
    """
    launch, server = prepare(peer, model, home)
    command = peer.start(launch)
    first = server.payloads(model)[0]
    try:
        with processes.running(
            command.argv,
            part=peer.part,
            cores=cores,
            log=launch.home / "server.log",
            is_ready=lambda: systems.answers(server.http, first),
            extra={**launch.variables(), **command.variables},
            within_s=START_S,
        ):
            ready_at = time.monotonic()
            server.check(model)
            yield replace(server, idle_cores=idle_cores(peer.part), ready_at=ready_at)
    finally:
        end(peer.part)
        if command.scratch is not None:
            shutil.rmtree(command.scratch, ignore_errors=True)


def prepare(peer: Peer, model: Model, home: Path) -> tuple[Launch, Server]:
    """Ports and a scratch folder for a start."""
    port, grpc_port, metrics_port = processes.free_ports(3)
    home.mkdir(parents=True, exist_ok=True)
    launch = Launch(
        model=model,
        environment=ensure(peer.requirements),
        home=home,
        port=port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
    )
    server = Server(
        name=peer.name,
        part=peer.part,
        http=port,
        json=peer.json,
        grpc=grpc_port if peer.grpc else 0,
        binary=peer.binary,
    )
    return launch, server


@contextmanager
def headrace_server(model: Model, *, cores: frozenset[int], home: Path) -> Iterator[Server]:
    """Headrace's replica with its defaults, without a gateway, ready and checked."""
    home.mkdir(parents=True, exist_ok=True)
    with systems.replica(model.path, name=model.name, cores=cores, home=home) as system:
        server = Server(
            name=HEADRACE,
            part=systems.REPLICA,
            http=system.http,
            json=wire.V2_JSON,
            binary=wire.V2_BINARY,
            ready_at=time.monotonic(),
        )
        server.check(model)
        yield server


@contextmanager
def headrace_gateway(model: Model, *, cores: frozenset[int], home: Path) -> Iterator[Server]:
    """The whole of `headrace up` on `cores`, ready and checked."""
    home.mkdir(parents=True, exist_ok=True)
    with systems.up(
        model.path, name=model.name, inputs=model.rows[0], cores=cores, home=home
    ) as system:
        server = Server(
            name=HEADRACE,
            part=systems.ENVOY,
            http=system.http,
            grpc=system.grpc,
            json=wire.V2_JSON,
            binary=wire.V2_BINARY,
        )
        server.check(model)
        yield server


@contextmanager
def peer_gateway(
    peer: Peer, model: Model, server: Server, *, cores: frozenset[int], home: Path
) -> Iterator[Server]:
    """The same Envoy in front of a peer that is up, for its JSON: its endpoint is an upstream."""
    home.mkdir(parents=True, exist_ok=True)
    upstream = {
        "url": f"http://127.0.0.1:{server.http}",
        "protocol": peer.upstream,
        "model": model.name,
    }
    if peer.upstream == "http":
        del upstream["model"]
    prefix = "" if peer.upstream == "v2" else f"/endpoints/{model.name}"
    behind = replace(
        server,
        json=server.json.at(prefix),
        binary=None,
        grpc=0,
    )
    # Without checks of health: not every peer has a path that answers 200 to a GET.
    spec = {
        "version": 1,
        "endpoints": [{"name": model.name, "upstream": {**upstream, "health_path": None}}],
    }
    first = behind.payloads(model)[0]
    with systems.up_spec(spec, probe=first, cores=cores, home=home) as system:
        fronted = replace(behind, http=system.http)
        fronted.check(model)
        yield fronted


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Inside the block a restless server gets no processor time."""
    if server.idle_cores <= MAX_IDLE_CORES:
        yield
        return
    _signal(server.part, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(server.part, signal.SIGCONT)


def idle_cores(part: str) -> float:
    """Cores that a part uses while nobody asks."""
    before = cpu.read(time.monotonic())
    time.sleep(IDLE_S)
    return cpu.usage(before, cpu.read(time.monotonic())).by_part.get(part, 0.0)


def end(part: str) -> None:
    """Kill what is left of a part, of its workers and daemons; wait until it is gone."""
    deadline = time.monotonic() + processes.STOP_TIMEOUT_S
    while processes.stop_leftovers(part) and time.monotonic() < deadline:
        time.sleep(processes.POLL_S)


def _signal(part: str, number: signal.Signals) -> None:
    for pid, name in cpu.ours():
        if name == part:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _post(name: str, port: int, given: Payload) -> tuple[bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", given.path, body=given.body, headers=dict(given.headers))
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        msg = f"{name} gave no answer to {given.path}: {error!r}"
        raise WrongAnswerError(msg) from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        msg = f"{name} answered {response.status} to {given.path}: {body[:500]!r}"
        raise WrongAnswerError(msg)
    return body, dict(response.getheaders())
