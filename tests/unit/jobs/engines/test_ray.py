"""Ray: the check of its address, which worker runs which shard, and lost workers."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NoReturn

import grpc
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Code, InvalidArgumentError, UnavailableError
from headrace.jobs.engines.ray import (
    ASKS,
    BEGIN_S,
    TRIES,
    HostPort,
    ShardTracker,
    WorkerError,
    WorkerPool,
    WorkersLostError,
    check_address,
    has_token,
    host_of,
    why_refused,
    why_silent,
)
from headrace.jobs.engines.ray_worker import ShardOutcome, ShardProgress
from headrace.jobs.messages import CompletedShard, Shard
from headrace.jobs.shard import Hooks


@pytest.mark.parametrize(
    "address", ["local", "auto", "10.0.0.5:6379", "[::1]:6379", "ray://head:10001", "anyscale://x"]
)
def test_addresses_that_ray_takes(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address", ["head", "head:", "head:0", "head:99999", ":6379", "ray://head"]
)
def test_addresses_that_ray_does_not_take_are_refused_with_what_it_takes(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--address .*HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("auto", None),
        ("head:6379", ("head", 6379)),
        ("[::1]:6379", ("::1", 6379)),
        ("ray://a:10001", ("a", 10001)),
        ("ray://a:10001/", ("a", 10001)),
        ("anyscale://host", None),
    ],
)
def test_the_host_of_an_address(address: str, head: HostPort | None) -> None:
    assert host_of(address) == head


@given(st.text(min_size=1, max_size=40))
def test_any_address_is_taken_apart_or_refused(text: str) -> None:
    try:
        head = host_of(f"ray://{text}")
    except InvalidArgumentError:
        return
    assert head is None or (head[0] and 0 < head[1] < 65536)


def test_a_head_that_accepts_a_connection_is_not_silent() -> None:
    calls = []

    def connect(head: HostPort, timeout_s: float) -> nullcontext[None]:
        calls.append((head, timeout_s))
        return nullcontext()

    assert why_silent(("a", 1), connect) == ""
    assert calls == [(("a", 1), 10.0)]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "a:1: Connection refused"),
        (TimeoutError("timed out"), "a:1: no answer within 10 s"),
        (OSError("something else"), "a:1: something else"),
    ],
)
def test_a_head_that_does_not_answer_has_its_reason(error: OSError, why: str) -> None:
    def connect(head: HostPort, timeout_s: float) -> NoReturn:
        assert (head, timeout_s) == (("a", 1), 10.0)
        raise error

    assert why_silent(("a", 1), connect) == why


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_what_is_silent_is_not_ray(code: grpc.StatusCode) -> None:
    told = {why_refused(code, "head:6379", shows_token=shows) for shows in (True, False)}

    assert told == {"head:6379: what listens there does not answer as Ray does"}


def test_a_token_is_asked_for_where_none_is_shown() -> None:
    refused = grpc.StatusCode.UNAUTHENTICATED

    assert why_refused(refused, "head:6379", shows_token=False) == ASKS
    assert why_refused(refused, "head:6379", shows_token=True) == ""


def test_a_head_that_knows_another_method_is_one() -> None:
    assert why_refused(grpc.StatusCode.UNIMPLEMENTED, "head:6379", shows_token=False) == ""


def test_whether_a_token_is_shown_is_as_ray_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for mode in ("token", "TOKEN", "disabled", ""):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        shown[mode] = has_token()

    assert shown == {"token": True, "TOKEN": True, "disabled": False, "": False}


ROWS, ERRORS = 10, 2


@dataclass
class Counts:
    rows: int = 0
    errors: int = 0
    samples: list[str] = field(default_factory=list)

    def callbacks(self) -> Hooks:
        def on_rows(rows: int, errors: int, samples: Sequence[str]) -> None:
            self.rows, self.errors = self.rows + rows, self.errors + errors
            self.samples += samples

        return Hooks(on_rows=on_rows, is_stopped=lambda: False)


def shards(count: int) -> list[Shard]:
    return [Shard(number=i, file="rows", begin=i, end=i + 1, fingerprint="f") for i in range(count)]


def done(shard: Shard) -> ShardOutcome:
    line = CompletedShard(
        shard=shard.number, fingerprint="f", digest="d", rows=ROWS, errors=ERRORS, files=[]
    )
    return ShardOutcome(shard=shard.number, done=line, samples=["a", "b"])


@given(st.lists(st.sampled_from(["saw", "lost", "done"]), max_size=60))
def test_whatever_is_seen_and_lost_counts_once(steps: list[str]) -> None:
    counts = Counts()
    tracker = ShardTracker(shards(4), counts.callbacks())
    finished: list[int] = []
    lost: dict[int, int] = {}
    shard = tracker.take()
    seen = 0
    for step in steps:
        if shard is None:
            break
        if step == "saw":
            seen = min(seen + 3, ROWS)
            tracker.advance(
                ShardProgress(shard=shard.number, rows=seen, errors=min(seen, ERRORS)), shard
            )
            assert counts.rows == len(finished) * ROWS + seen
            continue
        if step == "lost":
            if lost.get(shard.number, 0) + 1 >= TRIES:
                break
            lost[shard.number] = lost.get(shard.number, 0) + 1
            tracker.lose(shard, "killed")
            assert tracker.waiting == 4 - len(finished)
        else:
            assert tracker.finish(done(shard)) is not None
            finished.append(shard.number)
        seen = 0
        assert (counts.rows, counts.errors) == (len(finished) * ROWS, len(finished) * ERRORS)
        shard = tracker.take()
    assert finished == list(range(len(finished)))


def test_samples_of_a_shard_are_told_once() -> None:
    counts = Counts()
    (shard,) = shards(1)
    tracker = ShardTracker([], counts.callbacks())
    tracker.advance(ShardProgress(shard=0, rows=5, errors=1, samples=["a"]), shard)
    tracker.finish(done(shard))

    assert counts.samples == ["a", "b"]


def test_what_a_worker_says_of_the_shard_before_is_not_counted() -> None:
    counts = Counts()
    before, now = shards(2)
    tracker = ShardTracker([], counts.callbacks())
    tracker.finish(done(before))
    tracker.advance(ShardProgress(shard=0, rows=ROWS), now)

    assert counts.rows == ROWS


def test_a_shard_that_ends_every_worker_ends_the_job_and_is_named() -> None:
    (shard,) = shards(1)
    tracker = ShardTracker([shard], Counts().callbacks())
    for _ in range(TRIES - 1):
        assert tracker.take() == shard
        tracker.lose(shard, "killed")

    with pytest.raises(WorkersLostError, match=r"4 workers were lost over shard 0 \(rows\)"):
        tracker.lose(shard, "out of memory")


def test_what_went_wrong_elsewhere_keeps_its_code_and_a_stop_is_none() -> None:
    tracker = ShardTracker(shards(1), Counts().callbacks())

    assert tracker.finish(ShardOutcome(shard=0, code=Code.CANCELLED, message="stopped")) is None
    with pytest.raises(WorkerError, match="disk is full") as caught:
        tracker.finish(ShardOutcome(shard=0, code=Code.FAILED_PRECONDITION, message="disk is full"))
    assert caught.value.code is Code.FAILED_PRECONDITION


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
        callbacks = Hooks(on_rows=lambda *_: None, is_stopped=lambda: False)
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
        line = CompletedShard(shard=number, fingerprint="f", digest="d", rows=1, errors=0, files=[])
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
