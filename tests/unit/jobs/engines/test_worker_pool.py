"""Workers of Ray that never begin are not waited for without end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import msgspec
import pytest

from headrace.core import UnavailableError
from headrace.jobs.engines.ray import BEGIN_S, ShardTracker, WorkerPool
from headrace.jobs.engines.ray_worker import ShardOutcome, ShardProgress
from headrace.jobs.messages import Done, Shard
from headrace.jobs.running import JobCallbacks

STEP_S = 60.0
SHARDS = [Shard(number=i, file="rows", begin=i, end=i + 1, fingerprint="f") for i in range(3)]


class GoneError(Exception):
    """As Ray's own, of a worker that is lost."""


@dataclass
class Promise:
    """What a worker is to answer: at a step of the cluster's, or never. `gone`: lost instead."""

    at: float
    value: object = ""
    gone: bool = False


@dataclass
class Cluster:
    """Ray, as far as a pool knows it, in virtual time: a look is a step.

    `begins`: after how many steps each worker has begun, None for never; `lives`: how many shards
    it lives for.
    """

    begins: Sequence[int | None]
    lives: int = 99
    now: int = 0
    killed: int = 0
    actors: list["Actor"] = field(default_factory=list)
    exceptions: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(RayError=GoneError, RayActorError=GoneError)
    )

    def wait(
        self, asked: list[Promise], *, num_returns: int = 1, timeout: float
    ) -> tuple[list[Promise], list[Promise]]:
        assert 0 < num_returns <= len(asked)
        self.now += bool(timeout)
        ready = [one for one in asked if one.at <= self.now]
        return ready, [one for one in asked if one not in ready]

    def get(self, asked: Promise) -> object:
        if asked.gone:
            raise GoneError("it died")
        return asked.value

    def kill(self, actor: "Actor") -> None:
        assert actor in self.actors
        self.killed += 1

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 0.0}

    def start(self) -> "Actor":
        begins = self.begins[min(len(self.actors), len(self.begins) - 1)]
        actor = Actor(self, float("inf") if begins is None else self.now + begins)
        self.actors.append(actor)
        return actor

    def run(self, size: int) -> list[int]:
        callbacks = JobCallbacks(on_rows=lambda *_: None, is_stopped=lambda: False)
        tracker = ShardTracker(SHARDS, callbacks)
        pool = WorkerPool(ray=self, start=self.start, tracker=tracker, size=size)
        done = pool.run(callbacks.is_stopped, lambda: self.now * STEP_S)
        return [shard.shard for shard in done]


@dataclass(frozen=True)
class Method:
    remote: Callable[..., Promise]


class Actor:
    """A worker of the cluster."""

    def __init__(self, cluster: Cluster, begun_at: float) -> None:
        self.cluster = cluster
        self.shards = 0
        self.ready = Method(lambda: Promise(begun_at))
        progress = msgspec.json.encode(ShardProgress())
        self.progress = Method(lambda: Promise(cluster.now, progress))
        self.run = Method(self._run)

    def _run(self, told: bytes) -> Promise:
        self.shards += 1
        number = msgspec.json.decode(told, type=Shard).number
        line = Done(shard=number, fingerprint="f", digest="d", rows=1, errors=0, files=[])
        value = msgspec.json.encode(ShardOutcome(shard=number, done=line))
        return Promise(self.cluster.now + 1, value, gone=self.shards > self.cluster.lives)


def test_workers_that_begin_share_the_shards() -> None:
    cluster = Cluster(begins=[1])

    assert sorted(cluster.run(2)) == [0, 1, 2]
    assert len(cluster.actors) == cluster.killed == 2


def test_a_worker_that_waits_for_a_core_does_not_hold_up_the_others() -> None:
    assert sorted(Cluster(begins=[1, None]).run(2)) == [0, 1, 2]


def test_workers_that_never_begin_are_given_up_in_time() -> None:
    cluster = Cluster(begins=[None])

    with pytest.raises(UnavailableError, match=r"within 300 s: .* 0 cores free"):
        cluster.run(2)
    assert cluster.now * STEP_S == BEGIN_S + STEP_S


def test_a_worker_that_is_lost_is_begun_anew_and_its_shard_done() -> None:
    cluster = Cluster(begins=[1], lives=1)

    assert sorted(cluster.run(1)) == [0, 1, 2]
    assert len(cluster.actors) == 3
