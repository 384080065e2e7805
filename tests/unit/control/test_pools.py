"""What copies of a pool are told, and when."""

import asyncio
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.base.journal import ChangeSignal
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    make_revision,
    pool_endpoint,
)
from headrace.control.model.observed import Observed, Replica, ReplicaPhase
from headrace.control.reconcile.plan import PublishRoutes, plan
from headrace.control.reconcile.pools import (
    LINGER_S,
    AcknowledgedModels,
    Hosting,
    HostingUpdate,
    PoolSync,
    RoutedTo,
    check_frameworks,
    host,
    hosted_replicas,
    plan_pools,
    routed_now,
)
from headrace.core import (
    EndpointName,
    FailedPreconditionError,
    ReplicaSettings,
    UnavailableError,
)
from headrace.core.spec.scale import PoolSpec
from headrace.gateway import EndpointRoute, RevisionTarget
from headrace.serving.telemetry.report import PoolReport
from headrace.testing import LoopClock, VirtualTimeLoop


def revision(
    name: str,
    version: str = "1",
    *,
    pool: str = "small",
    path: str = "p",
    purpose: str = "",
    runtime: str = "",
) -> Revision:
    return make_revision(
        endpoint=EndpointName(name),
        model=f"{name}:{version}",
        settings=ReplicaSettings(
            model_name=name, model_version=version, path=path, runtime=runtime
        ),
        purpose=purpose,
        pool=pool,
    )


def want(*revisions: Revision) -> DesiredState:
    names = sorted({revision.endpoint for revision in revisions})
    endpoints = tuple(
        DesiredEndpoint(
            name=EndpointName(name),
            timeout_s=None,
            arms=tuple(
                DesiredArm(revision=r, weight=0, replicas=1)
                for r in revisions
                if r.endpoint == name
            ),
        )
        for name in names
    )
    pool = PoolSpec(name="small", replicas=2, memory_bytes=1, max_loaded=1, load_timeout_s=1.0)
    return DesiredState(endpoints=endpoints, pools=(pool,))


def copy(
    serial: int, phase: ReplicaPhase = ReplicaPhase.STARTING, *, pool: str = "small"
) -> Replica:
    return Replica(
        name=f"pool-{pool}-{serial}",
        serial=serial,
        endpoint=f"pool:{pool}",
        version="0",
        revision_id="x",
        address=f"unix:/r{serial}.sock",
        phase=phase,
        since=0.0,
        pid=1000 + serial,
    )


def route(name: str, version: str, *replicas: Replica) -> EndpointRoute:
    arm = RevisionTarget(version=version, weight=100, replicas=tuple(r.address for r in replicas))
    return EndpointRoute(name=name, timeout_s=None, arms=(arm,))


def plan_of(
    desired: DesiredState,
    *replicas: Replica,
    told: dict[str, AcknowledgedModels] | None = None,
    routed: Sequence[RoutedTo] = (),
) -> list[HostingUpdate]:
    return list(plan_pools(desired, replicas, told or {}, routed))


A, B = revision("a"), revision("b", "2")


def test_every_running_copy_is_told_the_models_of_its_pool() -> None:
    other = revision("c", pool="other")
    alone = revision("d", pool="")
    ready, starting, ended = copy(1, ReplicaPhase.READY), copy(2), copy(3, ReplicaPhase.EXITED)

    tells = plan_of(want(A, B, other, alone), ready, starting, ended)

    assert [tell.replica for tell in tells] == [ready.name, starting.name]
    assert [model.model_name for model in tells[0].hosting.models] == ["a", "b"]
    assert tells[0].hosting.revision_ids == {A.id, B.id}


def test_a_copy_of_a_pool_without_models_is_told_that_there_are_none() -> None:
    (tell,) = plan_of(want(), copy(1))

    assert tell.hosting.models == ()


def test_a_replica_of_an_endpoint_is_told_nothing() -> None:
    assert plan_of(want(A), replace(copy(1), endpoint="a")) == []


def test_who_knows_is_not_told_again_until_its_process_is_another() -> None:
    replica = copy(1, ReplicaPhase.READY)
    told = {replica.name: AcknowledgedModels(process=replica.process, hosting=host([A]))}

    assert plan_of(want(A), replica, told=told) == []
    assert len(plan_of(want(A, B), replica, told=told)) == 1
    assert len(plan_of(want(A), replace(replica, pid=7), told=told)) == 1


def test_what_the_gateway_may_still_send_stays_hosted() -> None:
    replica = copy(1, ReplicaPhase.READY)
    told = {replica.name: AcknowledgedModels(process=replica.process, hosting=host([A, B]))}
    observed = Observed(published=(route("b", "2", replica),), attempted=(route("a", "1"),))
    elsewhere = Observed(published=(route("b", "2", copy(9)),))

    (gone,) = plan_of(want(A), replica, told=told, routed=list(routed_now(elsewhere)))

    assert plan_of(want(A), replica, told=told, routed=list(routed_now(observed))) == []
    assert gone.hosting.revision_ids == {A.id}


def test_what_an_earlier_control_plane_had_hosted_is_kept_while_it_is_routed() -> None:
    replica = copy(1, ReplicaPhase.READY)
    routes = (route("b", "2", replica), route("a", "1", replica), route("pool:small", "0", replica))
    observed = Observed(published=(*routes, route("c", "3", copy(9))))

    (tell,) = plan_of(want(A), replica, routed=list(routed_now(observed)))
    told = {replica.name: AcknowledgedModels(process=replica.process, hosting=tell.hosting)}
    (later,) = plan_of(want(A), replica, told=told)

    assert tell.hosting.keeps == (("b", "2"),)
    assert later.hosting == host([A])


def test_a_baseline_is_the_same_model_as_what_it_is_measured_against() -> None:
    baseline = revision("a", purpose="baseline")

    hosting = host([A, baseline])

    assert hosting.models == (A.settings,)
    assert hosting.revision_ids == {A.id, baseline.id}


def test_the_desired_settings_win_over_what_is_only_routed_still() -> None:
    changed = revision("a", path="other")

    hosting = host([changed], [A])

    assert hosting.models == (changed.settings,)
    assert hosting.revision_ids == {changed.id}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from("xy"))))
def test_no_name_and_version_is_hosted_twice_and_order_means_nothing(
    found: list[tuple[str, str, str]],
) -> None:
    unequal = {(name, version): path for name, version, path in found}
    revisions = [revision(n, v, path=path) for (n, v), path in unequal.items()]

    hosting, reversed_ = host(revisions), host(reversed(revisions))

    assert hosting == reversed_
    assert len(hosting.models) == len(unequal)
    keys = [(model.model_name, model.model_version) for model in hosting.models]
    assert keys == sorted(set(keys))


# The driver


@dataclass
class World:
    desired: DesiredState = field(default_factory=DesiredState)
    hosted: MutableMapping[str, frozenset[str]] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    published: tuple[EndpointRoute, ...] = ()
    changes: ChangeSignal = field(default_factory=ChangeSignal)
    is_leader: bool = True
    unreadable: set[str] = field(default_factory=set)

    def observed(self) -> Observed:
        return Observed(replicas=dict(self.replicas), published=self.published)

    def may_act(self) -> bool:
        return self.is_leader

    def hosted_settings(self, revision: Revision) -> ReplicaSettings | None:
        if revision.settings.path in self.unreadable:
            return None
        return msgspec.structs.replace(revision.settings, path=f"there/{revision.settings.path}")

    def put(self, *replicas: Replica) -> None:
        self.replicas.update({replica.name: replica for replica in replicas})
        self.changes.notify()


@dataclass
class Copies:
    """The other side: hears lists, or nothing."""

    heard: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)

    async def put(self, address: str, hosting: Hosting) -> PoolReport:
        await asyncio.sleep(0.01)
        if address in self.deaf:
            msg = f"no answer from {address}"
            raise UnavailableError(msg)
        names = tuple(model.model_name for model in hosting.models)
        self.heard.setdefault(address, []).append(names)
        self.paths |= {model.path for model in hosting.models}
        return PoolReport(pool="small", replica="")


@contextmanager
def running(world: World, copies: Copies) -> Iterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(PoolSync(world=world, clock=LoopClock(), put=copies.put).run())
    try:
        yield task
    finally:
        task.cancel()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


@pytest.mark.anyio
async def test_copies_are_told_as_they_come_and_what_changes() -> None:
    copies = Copies()
    world = World(desired=want(A))
    one, other = copy(1), copy(2)
    with running(world, copies):
        world.put(one)
        await asyncio.sleep(1)
        assert world.hosted == {one.name: {A.id}}
        world.put(other)
        await asyncio.sleep(1)
        world.desired = want(A, B)
        world.changes.notify()
        await asyncio.sleep(1)

    assert copies.heard == {
        one.address: [("a",), ("a", "b")],
        other.address: [("a",), ("a", "b")],
    }
    assert world.hosted == {name: {A.id, B.id} for name in (one.name, other.name)}


@pytest.mark.anyio
async def test_a_copy_that_does_not_listen_yet_is_told_when_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    copies = Copies()
    caplog.set_level("INFO")
    world = World(desired=want(A))
    one, other = copy(1), copy(2)
    copies.deaf.add(one.address)
    with running(world, copies):
        world.put(one, other)
        await asyncio.sleep(3)
        assert world.hosted == {other.name: {A.id}}
        copies.deaf.clear()
        await asyncio.sleep(1)

    assert world.hosted == {name: {A.id} for name in (one.name, other.name)}
    assert caplog.text.count("cannot update a pool replica") == 1


@pytest.mark.anyio
async def test_a_copy_that_was_started_again_is_told_again() -> None:
    copies = Copies()
    world = World(desired=want(A))
    one = copy(1, ReplicaPhase.READY)
    with running(world, copies):
        world.put(one)
        await asyncio.sleep(1)
        world.put(replace(one, phase=ReplicaPhase.EXITED, pid=None))
        await asyncio.sleep(1)
        assert world.hosted == {}
        world.put(replace(one, phase=ReplicaPhase.STARTING, pid=77))
        await asyncio.sleep(1)
        assert world.hosted == {one.name: {A.id}}
        del world.replicas[one.name]
        world.changes.notify()
        await asyncio.sleep(1)

    assert copies.heard == {one.address: [("a",), ("a",)]}
    assert world.hosted == {}


@pytest.mark.anyio
async def test_a_copy_elsewhere_is_told_again_when_its_process_is_another() -> None:
    copies = Copies()
    world = World(desired=want(A))
    pod = replace(copy(1, ReplicaPhase.READY), pid=None, restarts=0)
    with running(world, copies):
        world.put(pod)
        await asyncio.sleep(1)
        world.put(replace(pod, restarts=1))
        await asyncio.sleep(1)

    assert copies.heard == {pod.address: [("a",), ("a",)]}


@pytest.mark.anyio
async def test_copies_are_told_of_what_they_can_host_where_they_run() -> None:
    copies = Copies()
    away = revision("b", path="elsewhere")
    world = World(desired=want(A, away), unreadable={"elsewhere"})
    one = copy(1)
    with running(world, copies):
        world.put(one)
        await asyncio.sleep(1)

    assert copies.heard == {one.address: [("a",)]}
    assert copies.paths == {"there/p"}
    assert world.hosted == {one.name: {A.id}}


@pytest.mark.anyio
async def test_who_does_not_lead_tells_nobody_and_who_has_no_address_is_told_later() -> None:
    copies = Copies()
    world = World(desired=want(A), is_leader=False)
    one, placed = copy(1), replace(copy(2), address="")
    with running(world, copies):
        world.put(one, placed)
        await asyncio.sleep(LINGER_S * 3)
        assert copies.heard == {}
        world.is_leader = True
        await asyncio.sleep(LINGER_S * 3)

    assert copies.heard == {one.address: [("a",)]}


@pytest.mark.anyio
async def test_what_is_not_routed_any_more_is_dropped_a_little_later() -> None:
    copies = Copies()
    world = World(desired=want(A, B))
    one = copy(1, ReplicaPhase.READY)
    world.published = (route("b", "2", one),)
    with running(world, copies):
        world.put(one)
        await asyncio.sleep(1)
        world.desired = want(A)
        world.changes.notify()
        await asyncio.sleep(10)
        assert copies.heard[one.address] == [("a", "b")]
        world.published = ()
        world.changes.notify()
        await asyncio.sleep(LINGER_S - 0.5)
        assert copies.heard[one.address] == [("a", "b")]
        await asyncio.sleep(LINGER_S * 2)

    assert copies.heard[one.address] == [("a", "b"), ("a",)]
    assert world.hosted == {one.name: {A.id}}


def test_a_hosting_knows_its_revisions() -> None:
    empty = Hosting(models=(), revisions=())

    assert empty.revision_ids == frozenset()


def routes_of(desired: DesiredState, observed: Observed) -> dict[str, tuple[str, ...]]:
    """Where requests go next, by endpoint."""
    actions = plan(desired, observed, 1.0, drain_timeout_s=5.0)
    found = [action.routes for action in actions if isinstance(action, PublishRoutes)]
    routes = found[0] if found else observed.published or ()
    return {route.name: route.arms[0].replicas for route in routes}


def test_an_endpoint_that_moves_into_a_pool_keeps_its_replicas_until_it_is_hosted() -> None:
    pooled = revision("a")
    arm = DesiredArm(revision=pooled, weight=100, replicas=0)
    endpoint = DesiredEndpoint(name=EndpointName("a"), timeout_s=None, arms=(arm,))
    desired = msgspec.structs.replace(want(), endpoints=(endpoint,))
    alone = replace(
        copy(9, ReplicaPhase.READY), name="a-1-9", endpoint="a", version="1", was_ready=True
    )
    (pool_arm,) = pool_endpoint(desired.pools[0]).arms
    host_copy = replace(
        copy(1, ReplicaPhase.READY), revision_id=pool_arm.revision.id, was_ready=True
    )
    before = Observed(
        replicas={one.name: one for one in (alone, host_copy)},
        published=(route("a", "1", alone),),
    )
    after = replace(before, hosted={host_copy.name: frozenset({pooled.id})})

    assert routes_of(desired, before)["a"] == (alone.address,)
    assert routes_of(desired, after)["a"] == (host_copy.address,)


def test_every_model_that_a_copy_hosts_counts_as_a_replica_of_its_endpoint() -> None:
    one, two = revision("a", "1"), revision("a", "2")
    baseline = revision("a", "1", purpose="baseline")
    arms = (
        DesiredArm(revision=two, weight=10, replicas=0),
        DesiredArm(revision=baseline, weight=10, replicas=0, role="baseline"),
        DesiredArm(revision=one, weight=80, replicas=0),
    )
    endpoint = DesiredEndpoint(name=EndpointName("a"), timeout_s=None, arms=arms)
    ready, starting, other = copy(1, ReplicaPhase.READY), copy(2), copy(3, ReplicaPhase.READY)
    everything = frozenset({one.id, two.id, baseline.id})
    hosted = {ready.name: everything, starting.name: everything, other.name: frozenset({one.id})}

    found = list(hosted_replicas(endpoint, [ready, starting, other], hosted))

    assert {(r.name, r.revision_id, r.query) for r in found} == {
        (f"{ready.name}/{two.id}", two.id, "model=a&version=2"),
        (f"{ready.name}/{baseline.id}", baseline.id, "model=a&version=1"),
    }
    assert {(r.endpoint, r.address, r.pid) for r in found} == {("a", ready.address, ready.pid)}


def test_an_endpoint_with_replicas_of_its_own_has_nothing_hosted() -> None:
    (endpoint,) = want(revision("a", pool="")).endpoints

    assert list(hosted_replicas(endpoint, [copy(1, ReplicaPhase.READY)], {})) == []


TORCH = revision("a", runtime="torchscript")
TENSORFLOW = revision("b", runtime="savedmodel")
APART = (want(TORCH), want(TENSORFLOW), want(TORCH, revision("b", runtime="onnx")))


@pytest.fixture
def both_frameworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are installed, as far as anybody can tell who imports neither."""
    for name in ("torch", "tensorflow"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("both_frameworks")
def test_a_pool_is_not_given_models_of_two_frameworks() -> None:
    both = want(TORCH, TENSORFLOW).endpoints

    for old in (want(), *APART):
        with pytest.raises(FailedPreconditionError, match="another pool, or none") as error:
            check_frameworks(old.endpoints, both)
        assert all(word in str(error.value) for word in ("'small'", "'a'", "'b'", "PyTorch"))


@pytest.mark.usefixtures("both_frameworks")
def test_another_framework_does_not_take_over_in_the_same_pool() -> None:
    old, new = want(TORCH), revision("a", "2", runtime="savedmodel")

    with pytest.raises(FailedPreconditionError, match="no process holds both"):
        check_frameworks(old.endpoints, want(new).endpoints)
    check_frameworks(old.endpoints, want(replace_pool(new, "other")).endpoints)


@pytest.mark.usefixtures("both_frameworks")
def test_a_pool_that_has_both_stops_no_other_change() -> None:
    old, other = want(TORCH, TENSORFLOW), revision("c", runtime="onnx")

    check_frameworks(old.endpoints, want(TORCH, TENSORFLOW, other).endpoints)
    check_frameworks(old.endpoints, want(TORCH, replace_pool(TENSORFLOW, "other")).endpoints)
    check_frameworks(old.endpoints, want(TORCH).endpoints)


@pytest.mark.usefixtures("both_frameworks")
def test_a_pool_runs_savedmodels_beside_pytorch_where_there_is_no_tensorflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # OpenVINO runs them then

    check_frameworks(want().endpoints, want(TORCH, TENSORFLOW).endpoints)


def replace_pool(old: Revision, pool: str) -> Revision:
    return revision(old.endpoint, old.version, pool=pool, runtime=old.settings.runtime)
