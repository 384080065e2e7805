"""Suites that start servers of their own: what a start costs, gateways, gRPC."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

from bench import processes, verify
from bench.load import closed, h2
from bench.payloads import grpc_payload
from bench.peers import environments, running
from bench.peers.models import Model
from bench.peers.pair import MANY, Pair, Task, closed_arm, warm_up
from bench.peers.rows import Row
from bench.peers.running import HEADRACE, Server
from bench.windows import Arm, Figures

COST: Final = "cost"
COST_LOAD: Final = "start, wait a second, a second of load"
GATEWAY: Final = "gateway"
GATEWAY_LOAD: Final = f"JSON, {MANY} connections, through Envoy"
GRPC: Final = "grpc"
GRPC_LOAD: Final = "unary, 4 connections x 8, ours through Envoy"
SHAPE: Final = (4, 8)
SETTLE_S: Final = 1.0
MIB: Final = 1 << 20

Start = Callable[[Path], AbstractContextManager[Server]]


def cost(task: Task, model: Model) -> Sequence[Row]:
    """Start both a few times on the server's core."""
    cores = task.context.placement.server
    starts: dict[str, Start] = {
        HEADRACE: lambda home: running.headrace_server(model, cores=cores, home=home),
        task.peer.name: lambda home: running.peer_server(task.peer, model, cores=cores, home=home),
    }
    sizes_mb = {
        HEADRACE: environments.headrace_size_mb(),
        task.peer.name: environments.ensure(task.peer.requirements).size_mb(),
    }
    numbers = count()

    def once(name: str) -> Figures:
        home = task.context.home / f"cost-{name}-{next(numbers)}"
        return {
            **_weigh(task, model, starts[name], home),
            "environment_mb": sizes_mb[name],
        }

    arms = [Arm(name=name, measure=partial(once, name)) for name in starts]
    return task.compare(COST, model.name, COST_LOAD, arms, rounds=task.plan.starts)


def _weigh(task: Task, model: Model, start: Start, home: Path) -> Figures:
    began = time.monotonic()
    with start(home) as server:
        time.sleep(SETTLE_S)
        idle_rss, idle_pss = processes.tree_bytes(server.part)
        load = task.context.load(
            server.payloads(model), name=f"cost-{server.name}", connections=MANY, seconds=1.0
        )
        closed.measure(server.http, load, read=closed.read_tolerantly)
        rss, pss = processes.tree_bytes(server.part)
        return {
            "first_answer_s": server.ready_at - began,
            "idle_rss_mib": idle_rss / MIB,
            "idle_pss_mib": idle_pss / MIB,
            "rss_mib": rss / MIB,
            "pss_mib": pss / MIB,
            "idle_cores": server.idle_cores,
        }


def gateway(task: Task, model: Model) -> Sequence[Row]:
    """The peer behind Headrace's Envoy, against the whole of `headrace up`; one core each.

    While all are up, also gRPC: ours through Envoy, theirs without, where the peer has it.
    """
    cores, home = task.context.placement.server, task.context.home / GATEWAY
    with (
        running.headrace_gateway(model, cores=cores, home=home / "ours") as ours,
        running.peer_server(task.peer, model, cores=cores, home=home / "peer") as peer,
    ):
        rows = _grpc(Pair(task=task, model=model, ours=ours, theirs=peer))
        with running.peer_gateway(
            task.peer, model, peer, cores=cores, home=home / "front"
        ) as theirs:
            pair = Pair(task=task, model=model, ours=ours, theirs=theirs)
            warm_up(pair)
            arms = [
                closed_arm(pair, server, pair.closed_load(server, connections=MANY))
                for server in pair.servers
            ]
            return [*rows, *pair.compare(GATEWAY, GATEWAY_LOAD, arms, rounds=task.plan.few)]


def _grpc(pair: Pair) -> Sequence[Row]:
    """Nothing where the peer has no gRPC, or h2load is missing."""
    if not (pair.theirs.grpc and h2.is_installed()):
        return []
    arms = [_grpc_arm(pair, server) for server in pair.servers]
    return pair.compare(GRPC, GRPC_LOAD, arms, rounds=pair.plan.few)


def _grpc_arm(pair: Pair, server: Server) -> Arm:
    row = pair.model.rows[0]
    expected = pair.model.expected(row)
    name = pair.model.name
    folder = pair.context.home / f"grpc-{server.name}"
    folder.mkdir()
    load = h2.H2Load(
        payload=grpc_payload(name, row),
        connections=SHAPE[0],
        streams=SHAPE[1],
        seconds=pair.plan.seconds,
        cores=pair.context.placement.load,
        folder=folder,
        answer_bytes=verify.check_grpc(server.name, server.grpc, name, row, expected),
    )
    h2.measure(server.grpc, load)
    return pair.arm(server, lambda: h2.measure(server.grpc, load))


OWN: Final[dict[str, Callable[[Task, Model], Sequence[Row]]]] = {COST: cost, GATEWAY: gateway}
"""Steps by name; that of gateways measures gRPC too."""
