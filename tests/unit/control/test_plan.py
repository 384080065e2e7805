"""The laws of the plan: whatever happens in whatever order, no request is lost on purpose."""

from dataclasses import dataclass, field, replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.gateway.routes import live_weights
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.model.observed import (
    Observed,
    ProbeResult,
    Replica,
    ReplicaPhase,
    addresses_of,
    drained,
    exited,
    killed,
    probed,
    started,
)
from headrace.control.reconcile.plan import (
    LOAD_TIMEOUT_S,
    SILENT_TIMEOUT_S,
    Action,
    DrainReplica,
    ForgetReplica,
    KillReplica,
    Memo,
    PublishRoutes,
    RestartReplica,
    StartReplica,
    due_at,
    plan,
    prospects_of,
)
from headrace.core import BatchingSpec, EndpointName, ReplicaSettings
from headrace.gateway import EndpointRoute, RevisionTarget

DRAIN_S = 30.0


def arm(
    version: str,
    *,
    weight: int = 100,
    replicas: int = 1,
    batch: int = 32,
    encodes: bool = False,
) -> DesiredArm:
    settings_ = ReplicaSettings(
        model_name="m",
        model_version=version,
        path=f"/models/{version}",
        batching=BatchingSpec(max_batch_size=batch),
    )
    revision = make_revision(
        endpoint=EndpointName("m"), model=f"m:{version}", settings=settings_, encodes=encodes
    )
    return DesiredArm(revision=revision, weight=weight, replicas=replicas)


def want(*arms: DesiredArm) -> DesiredState:
    endpoint = DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=arms)
    return DesiredState(generation=1, endpoints=(endpoint,) if arms else ())


@dataclass
class World:
    """A machine in memory: does what the plan says, and lets a test decide what happens next."""

    desired: DesiredState = field(default_factory=DesiredState)
    replicas: dict[str, Replica] = field(default_factory=dict)
    published: tuple[EndpointRoute, ...] | None = None
    attempted: tuple[EndpointRoute, ...] | None = None
    now: float = 0.0
    serial: int = 1

    def observed(self) -> Observed:
        return Observed(
            replicas=self.replicas,
            published=self.published,
            attempted=self.attempted,
            can_publish=self.attempted is None,
            next_serial=self.serial,
        )

    def step(self) -> list[Action]:
        actions = plan(self.desired, self.observed(), self.now, drain_timeout_s=DRAIN_S)
        for action in actions:
            self.do(action)
        return actions

    def do(self, action: Action) -> None:
        match action:
            case StartReplica(name=name, serial=serial, revision=revision):
                assert name not in self.replicas
                self.serial = max(self.serial, serial + 1)
                replica = Replica(
                    name=name,
                    serial=serial,
                    endpoint=revision.endpoint,
                    version=revision.version,
                    revision_id=revision.id,
                    address=f"unix:/run/r{serial}.sock",
                    phase=ReplicaPhase.STARTING,
                    since=self.now,
                )
                self.replicas[name] = started(replica, pid=1000 + serial, now=self.now)
            case RestartReplica(name=name):
                replica = self.replicas[name]
                again = replace(replica, restarts=replica.restarts + 1)
                self.replicas[name] = started(again, pid=9999, now=self.now)
            case PublishRoutes(routes=routes):
                assert self.attempted is None
                self.attempted = routes
            case DrainReplica(name=name):
                # The law of laws: nobody is told to leave who may still get requests.
                assert self.replicas[name].address not in self.observed().routed_addresses()
                self.replicas[name] = drained(self.replicas[name], now=self.now)
            case KillReplica(name=name, reason=reason):
                self.replicas[name] = killed(self.replicas[name], reason=reason)
            case ForgetReplica(name=name):
                del self.replicas[name]

    def acknowledge(self) -> None:
        if self.attempted is not None:
            self.published, self.attempted = self.attempted, None

    def probe(self, name: str, health: ProbeResult) -> None:
        self.replicas[name] = probed(self.replicas[name], health, now=self.now)

    def end(self, name: str, code: int | None = 1) -> None:
        replica = self.replicas[name]
        if replica.phase not in {ReplicaPhase.EXITED, ReplicaPhase.ENDED}:
            self.replicas[name] = exited(replica, exit_code=code, last_line="", now=self.now)

    def settle(self, *, rounds: int = 60) -> None:
        """Let everything go well until nothing is left to do."""
        for _ in range(rounds):
            self.now += 1.0
            for name, replica in list(self.replicas.items()):
                if replica.is_running and not replica.kill_sent:
                    self.probe(name, ProbeResult.READY)
                elif replica.phase is ReplicaPhase.DRAINING or replica.kill_sent:
                    self.end(name, 0)
                elif replica.phase is ReplicaPhase.EXITED:
                    self.now = max(self.now, replica.retry_at or 0.0)
            actions = self.step()
            is_quiet = not actions and self.attempted is None
            self.acknowledge()
            if is_quiet and all(r.phase is ReplicaPhase.READY for r in self.replicas.values()):
                return
        raise AssertionError(f"does not settle: {self}")

    def serving(self) -> set[str]:
        """Ready replicas that requests reach."""
        routed = addresses_of(self.published or ())
        return {
            n
            for n, r in self.replicas.items()
            if r.phase is ReplicaPhase.READY and r.address in routed
        }

    def of_version(self, version: str) -> list[Replica]:
        return [r for r in self.replicas.values() if r.version == version]


def settled(*arms: DesiredArm) -> World:
    world = World(desired=want(*arms))
    world.settle()
    return world


def test_a_new_endpoint_starts_its_replicas_and_is_known_at_once() -> None:
    world = World(desired=want(arm("1", replicas=2)))
    actions = world.step()

    assert [type(action) for action in actions] == [StartReplica, StartReplica, PublishRoutes]
    assert [a.name for a in actions if isinstance(a, StartReplica)] == ["m-1-1", "m-1-2"]
    assert world.attempted is not None
    assert world.attempted[0].arms[0].replicas == ()
    assert not world.attempted[0].arms[0].encodes


def test_only_ready_replicas_get_requests() -> None:
    world = World(desired=want(arm("1", replicas=2)))
    world.step()
    world.acknowledge()
    world.probe("m-1-1", ProbeResult.READY)
    world.step()

    assert world.attempted is not None
    assert world.attempted[0].arms[0].replicas == ("unix:/run/r1.sock",)


def test_a_dead_replica_leaves_the_routes_at_once_and_comes_back_after_its_delay() -> None:
    world = settled(arm("1", replicas=2))
    world.end("m-1-1", -9)
    world.step()
    taken_out = world.attempted
    world.acknowledge()
    too_early = world.step()
    world.now += 0.1
    due = world.step()

    assert taken_out is not None
    assert taken_out[0].arms[0].replicas == ("unix:/run/r2.sock",)
    assert too_early == []
    assert due == [RestartReplica(name="m-1-1")]


def test_a_new_version_gets_requests_only_when_all_its_replicas_are_ready() -> None:
    world = settled(arm("1"))
    world.desired = want(arm("2", replicas=2))
    world.step()
    world.probe("m-2-2", ProbeResult.READY)
    half = world.step()
    world.probe("m-2-3", ProbeResult.READY)
    world.step()
    switched = world.attempted

    assert not any(isinstance(action, PublishRoutes) for action in half)
    assert switched is not None
    assert [(a.version, a.weight) for a in switched[0].arms] == [("2", 100)]
    assert world.of_version("1")[0].phase is ReplicaPhase.READY  # until the gateway acknowledged
    world.acknowledge()
    assert world.step() == [DrainReplica(name="m-1-1")]


def test_a_version_that_never_gets_ready_leaves_the_old_one_serving() -> None:
    world = settled(arm("1"))
    world.desired = want(arm("2"))
    world.step()
    for _ in range(5):
        for replica in world.of_version("2"):
            world.end(replica.name, 3)
        world.now += 1000.0
        world.probe("m-1-1", ProbeResult.READY)
        world.step()
        world.acknowledge()

    assert world.serving() == {"m-1-1"}


def test_nothing_is_started_for_a_model_that_cannot_be_served_and_the_old_one_goes_on() -> None:
    world = settled(arm("1"))
    broken = arm("2")
    revision = msgspec.structs.replace(broken.revision, unloadable="is no model")
    world.desired = want(msgspec.structs.replace(broken, revision=revision))
    for _ in range(5):
        assert not any(isinstance(action, StartReplica) for action in world.step())
        world.acknowledge()
        world.now += 1.0

    assert world.serving() == {"m-1-1"}


def test_the_serving_version_is_started_again_while_the_new_one_loads() -> None:
    world = settled(arm("1"))
    world.desired = want(arm("2"))
    world.step()
    world.end("m-1-1", -11)
    world.now += 0.1
    world.step()

    assert world.replicas["m-1-1"].phase is ReplicaPhase.STARTING


def test_a_new_version_takes_over_early_if_the_old_one_cannot_answer() -> None:
    world = settled(arm("1"))
    world.desired = want(arm("2", replicas=2))
    world.step()
    world.end("m-1-1", -11)
    world.step()
    world.acknowledge()
    world.probe("m-2-2", ProbeResult.READY)
    world.step()
    world.acknowledge()

    assert world.serving() == {"m-2-2"}


def test_former_replicas_get_requests_again_if_the_version_that_replaced_them_ends() -> None:
    world = settled(arm("1", replicas=2, encodes=True))
    world.desired = want(arm("2", encodes=True))
    world.step()
    world.probe("m-2-3", ProbeResult.READY)
    world.step()
    world.acknowledge()
    world.end("m-2-3", -9)
    assert not any(isinstance(action, DrainReplica) for action in world.step())
    world.acknowledge()

    assert world.serving() == {"m-1-1", "m-1-2"}
    assert world.published is not None
    assert world.published[0].arms[0].encodes
    world.settle()
    assert world.serving() == {"m-2-3"}
    assert not world.of_version("1")


def test_an_endpoint_that_is_scaled_to_zero_keeps_no_former_replica() -> None:
    world = settled(arm("1", replicas=2))
    world.desired = want(arm("2", replicas=0))
    world.settle()

    assert not world.replicas


def test_a_change_of_settings_replaces_replicas_of_the_same_version() -> None:
    world = settled(arm("1", replicas=2))
    world.desired = want(arm("1", replicas=2, batch=8))
    world.step()
    world.probe("m-1-3", ProbeResult.READY)
    world.step()
    world.acknowledge()
    during = world.serving()
    world.settle()

    assert during == {"m-1-1", "m-1-2", "m-1-3"}
    assert world.serving() == {"m-1-3", "m-1-4"}


def test_a_new_weight_alone_waits_for_nothing() -> None:
    world = settled(arm("1", weight=90), arm("2", weight=10))
    world.desired = want(arm("1", weight=50), arm("2", weight=50))
    world.step()

    assert world.attempted is not None
    assert [a.weight for a in world.attempted[0].arms] == [50, 50]


def test_fewer_replicas_of_the_old_version_wait_for_the_switch() -> None:
    world = settled(arm("1", replicas=3))
    world.desired = want(arm("1", weight=10), arm("2", weight=90))
    world.step()
    world.acknowledge()
    before = world.serving()
    world.settle()

    assert len(before) == 3
    assert len(world.of_version("1")) == 1
    assert len(world.of_version("2")) == 1


def test_scaling_down_keeps_the_ready_and_old_ones() -> None:
    world = settled(arm("1", replicas=3))
    world.end("m-1-1", 1)
    world.desired = want(arm("1", replicas=1))
    world.settle()

    assert set(world.replicas) == {"m-1-2"}


def test_an_endpoint_that_is_removed_leaves_the_routes_before_its_replicas_leave() -> None:
    world = settled(arm("1"))
    world.desired = want()
    first = world.step()
    world.acknowledge()
    second = world.step()

    assert first == [PublishRoutes(routes=())]
    assert second == [DrainReplica(name="m-1-1")]


def test_going_back_while_the_new_version_loads_ends_the_new_one() -> None:
    world = settled(arm("1"))
    world.desired = want(arm("2"))
    world.step()
    world.desired = want(arm("1"))
    actions = world.step()

    assert actions == [DrainReplica(name="m-2-2")]
    assert world.serving() == {"m-1-1"}


def test_nobody_drains_who_may_be_in_routes_that_were_sent_but_not_acknowledged() -> None:
    world = World(desired=want(arm("1")))
    world.step()
    world.acknowledge()
    world.probe("m-1-1", ProbeResult.READY)
    world.step()  # sends routes with m-1-1
    world.desired = want()
    actions = world.step()

    assert actions == []


def test_what_does_not_drain_in_time_is_killed_once() -> None:
    world = settled(arm("1"))
    world.desired = want()
    world.step()
    world.acknowledge()
    world.step()
    due = due_at(world.observed(), drain_timeout_s=DRAIN_S)
    world.now += DRAIN_S
    kills = world.step()
    again = world.step()

    assert due == world.now
    assert [type(action) for action in kills] == [KillReplica]
    assert again == []
    world.end("m-1-1", -9)
    assert world.step() == [ForgetReplica(name="m-1-1")]


def test_what_loads_for_ever_is_killed() -> None:
    world = World(desired=want(arm("1")))
    world.step()
    world.now += LOAD_TIMEOUT_S

    assert any(isinstance(action, KillReplica) for action in world.step())


def test_what_answers_nobody_is_killed_and_started_again() -> None:
    world = settled(arm("1"))
    world.now += SILENT_TIMEOUT_S
    kills = world.step()
    world.end("m-1-1", -9)

    assert [type(action) for action in kills] == [KillReplica]
    assert "gave no response" in world.replicas["m-1-1"].reason


def test_a_replica_that_says_it_is_not_ready_gets_no_requests_until_it_is() -> None:
    world = settled(arm("1", replicas=2))
    world.probe("m-1-1", ProbeResult.NOT_READY)
    world.step()
    world.acknowledge()
    without = world.serving()
    world.probe("m-1-1", ProbeResult.READY)
    world.step()
    world.acknowledge()

    assert without == {"m-1-2"}
    assert world.serving() == {"m-1-1", "m-1-2"}


def test_nothing_is_published_while_a_publication_is_under_way() -> None:
    world = World(desired=want(arm("1")))
    world.step()
    world.probe("m-1-1", ProbeResult.READY)

    assert not any(isinstance(action, PublishRoutes) for action in world.step())


def test_time_alone_has_nothing_to_do_on_an_empty_machine() -> None:
    assert due_at(Observed(), drain_timeout_s=DRAIN_S) is None


versions = st.sampled_from(["1", "2", "3"])


@st.composite
def states(draw: st.DrawFn) -> DesiredState:
    chosen = draw(st.lists(versions, max_size=3, unique=True))
    if not chosen:
        return want()
    cuts = sorted(
        draw(st.lists(st.integers(0, 100), min_size=len(chosen) - 1, max_size=len(chosen) - 1))
    )
    weights = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
    return want(
        *(
            arm(v, weight=w, replicas=draw(st.integers(1, 3)), batch=draw(st.sampled_from([8, 32])))
            for v, w in zip(chosen, weights, strict=True)
        )
    )


events = st.one_of(
    st.tuples(st.just("want"), states()),
    st.tuples(st.just("ready"), st.integers(0, 20)),
    st.tuples(st.just("not ready"), st.integers(0, 20)),
    st.tuples(st.just("crash"), st.integers(0, 20)),
    st.tuples(st.just("wait"), st.integers(0, 20)),
    st.tuples(st.just("ack"), st.just(0)),
    st.tuples(st.just("step"), st.just(0)),
)


def happen(world: World, what: str, value: object) -> None:
    if what == "want":
        assert isinstance(value, DesiredState)
        world.desired = value
    elif what == "ack":
        world.acknowledge()
    elif what == "step":
        world.step()
    else:
        assert isinstance(value, int)
        names = list(world.replicas)
        if what == "wait":
            world.now += value
        elif names:
            name = names[value % len(names)]
            if what == "crash":
                world.end(name, -11)
            else:
                world.probe(name, ProbeResult.READY if what == "ready" else ProbeResult.NOT_READY)


@given(st.lists(events, max_size=40))
@settings(max_examples=100)
def test_whatever_happens_the_world_converges_to_what_is_wanted(
    history: list[tuple[str, object]],
) -> None:
    world = World()
    for what, value in history:
        happen(world, what, value)
    world.settle(rounds=400)

    have = sorted(r.revision_id for r in world.replicas.values())
    wanted = [a for e in world.desired.endpoints for a in e.arms]
    assert have == sorted(a.revision.id for a in wanted for _ in range(a.replicas))
    assert world.serving() == set(world.replicas)
    assert world.published is not None
    for route in world.published:
        assert {a.version: a.weight for a in route.arms} == {
            a.revision.version: a.weight for a in wanted
        }


@given(st.lists(events, max_size=40))
@settings(max_examples=100)
def test_no_revision_ever_runs_more_replicas_than_wanted(
    history: list[tuple[str, object]],
) -> None:
    world = World()
    for what, value in history:
        happen(world, what, value)
        before = set(world.replicas)
        world.step()
        limits = {a.revision.id: a.replicas for e in world.desired.endpoints for a in e.arms}
        started_now = [r for n, r in world.replicas.items() if n not in before]
        for revision_id, limit in limits.items():
            if any(r.revision_id == revision_id for r in started_now):
                live = [
                    r
                    for r in world.replicas.values()
                    if r.revision_id == revision_id and not r.is_leaving
                ]
                assert len(live) <= limit
        assert all(r.revision_id in limits for r in started_now)


@given(states(), states(), st.lists(st.integers(0, 20), max_size=30))
@settings(max_examples=100)
def test_a_change_never_takes_the_last_answer_away(
    old: DesiredState, new: DesiredState, order: list[int]
) -> None:
    """Replicas become ready in any order, nothing crashes: some replica serves all the time."""
    world = World(desired=old)
    world.settle()
    if not (old.endpoints and new.endpoints):
        return
    world.desired = new
    for position in order:
        world.step()
        names = list(world.replicas)
        if position % 3 == 0:
            world.acknowledge()
        if names:
            world.probe(names[position % len(names)], ProbeResult.READY)
        assert world.serving()
    world.settle()
    assert world.serving()


@given(st.lists(events, max_size=40))
@settings(max_examples=100)
def test_a_route_is_empty_only_if_no_version_that_may_answer_is_ready(
    history: list[tuple[str, object]],
) -> None:
    world = World()
    for what, value in history:
        happen(world, what, value)
        prospects = prospects_of(world.desired, world.observed(), Memo())
        for endpoint, prospect in zip(world.desired.endpoints, prospects, strict=True):
            shadows = {arm.revision.id for arm in endpoint.arms if not arm.weight}
            may_answer = any(
                replica.phase is ReplicaPhase.READY and replica.revision_id not in shadows
                for replica in world.replicas.values()
            )
            assert may_answer <= any(arm.weight and arm.replicas for arm in prospect.route.arms)


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=5))
def test_live_weights_sum_to_a_hundred_and_name_only_who_can_answer(
    arms: list[tuple[int, bool]],
) -> None:

    total = sum(weight for weight, _ in arms)
    if total == 0:
        return
    scaled = [weight * 100 // total for weight, _ in arms]
    scaled[0] += 100 - sum(scaled)
    route = EndpointRoute(
        name="m",
        timeout_s=None,
        arms=tuple(
            RevisionTarget(version=str(i), weight=w, replicas=("unix:/r",) if alive else ())
            for i, (w, (_, alive)) in enumerate(zip(scaled, arms, strict=True))
        ),
    )
    weights = live_weights(route)
    alive = {a.version for a in route.arms if a.replicas and a.weight}

    assert sum(weights.values()) == 100
    assert set(weights) == {a.version for a in route.arms}
    if alive:
        assert all(version in alive for version, weight in weights.items() if weight)
