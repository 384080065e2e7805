"""A peer and Headrace side by side on one core with one model, and how long each is measured."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench import cpu
from bench.context import Context
from bench.load import closed
from bench.payloads import Payload
from bench.peers import running
from bench.peers.catalog import Peer
from bench.peers.models import Model
from bench.peers.rows import Row, rows_of
from bench.peers.running import Server
from bench.windows import Arm, Figures, Window, interleave, quiet_window, watched

MANY: Final = 32
"""Connections that keep a server busy."""
SATURATION: Final = "saturation"
SATURATED: Final = f"JSON, {MANY} connections"
"""The suite and the load that tell a capacity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long everything is measured.

    `rounds`: windows of what is promised; `few`: of everything else. `probes`: steps of a search.
    `max_batch`: the largest batch of peers, 0 for each model's own.
    """

    rounds: int
    few: int
    seconds: float
    probes: int
    starts: int
    is_quick: bool
    max_batch: int = 0

    @staticmethod
    def of(*, quick: bool) -> "Plan":
        """Short, to see that it works; or as long as figures need."""
        if quick:
            return Plan(rounds=1, few=1, seconds=1.0, probes=2, starts=1, is_quick=True)
        return Plan(rounds=3, few=2, seconds=2.0, probes=3, starts=3, is_quick=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One peer to be compared with, and `seen`: what was measured already."""

    context: Context
    plan: Plan
    peer: Peer
    seen: list[Row]

    def compare(
        self,
        suite: str,
        model: str,
        load: str,
        arms: Sequence[Arm],
        *,
        rounds: int,
        again: bool = True,
    ) -> list[Row]:
        """Measure in turn; a row for each arm.

        Args:
            again: Whether noisy windows may be taken again; in a short run they never are.
        """

        def once(arm: Arm) -> Window:
            return watched(arm.measure)

        take = quiet_window if again and not self.plan.is_quick else once
        found = rows_of(suite, model, load, interleave(arms, rounds=rounds, take=take))
        self.seen.extend(found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two servers that are up with the same model."""

    task: Task
    model: Model
    ours: Server
    theirs: Server

    @property
    def context(self) -> Context:
        """How to measure."""
        return self.task.context

    @property
    def plan(self) -> Plan:
        """How long."""
        return self.task.plan

    @property
    def servers(self) -> tuple[Server, Server]:
        """Both."""
        return self.ours, self.theirs

    def other(self, server: Server) -> Server:
        """The one that is not measured now."""
        return self.theirs if server is self.ours else self.ours

    def arm(self, server: Server, measure: Callable[[], Figures]) -> Arm:
        """Measures one while the other, if it cannot sit still, is stopped."""
        other = self.other(server)

        def alone() -> Figures:
            with running.stopped(other):
                return metered(server.part, measure)

        return Arm(name=server.name, measure=alone)

    def compare(self, suite: str, load: str, arms: Sequence[Arm], *, rounds: int) -> list[Row]:
        """Measure in turn; a row for each arm."""
        return self.task.compare(suite, self.model.name, load, arms, rounds=rounds)

    def closed_load(
        self, server: Server, *, connections: int, binary: bool = False, seconds: float = 0
    ) -> closed.Load:
        """Closed-loop load with the server's own kind of requests."""
        kind = "binary" if binary else "json"
        return self.context.load(
            server.payloads(self.model, binary=binary),
            name=f"{server.name}-{self.model.name}-{kind}",
            connections=connections,
            seconds=seconds or self.plan.seconds,
        )

    def capacity(self, server: Server) -> float:
        """Requests/s that it answered with all connections busy.

        Raises:
            KeyError: That was not measured.
        """
        return capacity(self.task.seen, self.model.name, server.name)


def capacity(seen: Sequence[Row], model: str, server: str) -> float:
    """Requests/s of a server at saturation, JSON.

    Raises:
        KeyError: That was not measured.
    """
    for row in reversed(seen):
        if row.key == (SATURATION, model, SATURATED, server):
            return row.median("rps")
    msg = f"the capacity of {server} with {model} was not measured: run the suite saturation too"
    raise KeyError(msg)


def metered(part: str, measure: Callable[[], Figures]) -> Figures:
    """Figures with `cpu_s`, what a part used of the processors meanwhile."""
    before = cpu.read(time.monotonic())
    figures = measure()
    after = cpu.read(time.monotonic())
    cores = cpu.usage(before, after).by_part.get(part, 0.0)
    return {**figures, "cpu_s": cores * (after.now - before.now)}


def closed_arm(pair: Pair, server: Server, load: closed.Load) -> Arm:
    """Closed loop; refusals are counted and no error."""
    return pair.arm(server, lambda: closed.measure(server.http, load, read=closed.read_tolerantly))


def warm_up(pair: Pair) -> None:
    """Load for both, unmeasured, for as long as the peer needs to become as fast as it gets.

    In a short run the checks have to do.
    """
    for server in () if pair.plan.is_quick else pair.servers:
        seconds = pair.task.peer.warm_s if server is pair.theirs else 1.0
        # Few with pictures: after 200 MB of JSON under way the kernel keeps buffers small for long.
        connections = max(4, pair.model.max_batch)
        load = pair.closed_load(server, connections=connections, seconds=seconds)
        closed.measure(server.http, load, read=closed.read_tolerantly)


def with_headers(payloads: Sequence[Payload], headers: Mapping[str, str]) -> list[Payload]:
    """The same requests with more headers."""
    return [payload.with_headers(headers) for payload in payloads]


@contextmanager
def pair_up(task: Task, model: Model) -> Iterator[Pair]:
    """Both up on the server's core, checked and warm."""
    cores = task.context.placement.server
    home = task.context.home / f"{task.peer.name}-{model.name}"
    with (
        running.headrace_server(model, cores=cores, home=home / "headrace") as ours,
        running.peer_server(task.peer, model, cores=cores, home=home / "peer") as theirs,
    ):
        pair = Pair(task=task, model=model, ours=ours, theirs=theirs)
        warm_up(pair)
        yield pair
