"""The driver with the real store, machine and statistics; gateway and replicas are played."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from headrace.control.auth.roles import SYSTEM
from headrace.control.base.home import Home
from headrace.control.model.observed import ReplicaPhase
from headrace.control.model.rollout_events import ends_of
from headrace.control.rollouts.evidence import RolloutReading
from headrace.control.rollouts.observation import LiveRollout
from headrace.control.rollouts.status import rollout_evidence
from headrace.core import EndpointNotFoundError, FailedPreconditionError, NotFoundError
from headrace.registry import Registry
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.state import RolloutPhase, Verb
from headrace.serving.telemetry.report import Observe, PredictionCounts, ReplicaReport
from tests.unit.control.played import Plane, World

pytestmark = pytest.mark.anyio

STEPS = [
    {"weight": 10, "until": "verdict"},
    {"weight": 50, "until": "verdict"},
]
CANARY = {
    "strategy": "canary",
    "steps": STEPS,
    "warmup_s": 0.0,
    "metrics": {"predictions": None, "rejections": None},
}


@pytest.fixture
def world(home: Home, registry: Registry, tmp_path: Path) -> World:
    for number in (1, 2):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(b"model %d" % number)
        registry.push("digits", path)
    return World(home, registry)


async def started(world: World, plan_: dict[str, object] | None = None) -> Plane:
    plane = world.boot()
    entry = {"name": "digits", "model": "digits:1"}
    await plane.desired_state.apply({"endpoints": [entry]}, caller=SYSTEM)
    plane.settle()
    await plane.desired_state.start_rollout(
        "digits", version="2", rollout=plan_ or CANARY, caller=SYSTEM
    )
    return plane


def arms(plane: Plane) -> dict[str, int]:
    (route,) = plane.target_state.reconciler.publication.published or ()
    return {arm.key: arm.weight for arm in route.arms}


async def test_a_good_version_is_promoted_step_by_step(world: World) -> None:
    plane = await started(world)

    record = await plane.until_over()

    assert record.state.phase is RolloutPhase.PROMOTED, record.state.reason
    assert arms(plane) == {"2": 100}
    weights = [e.data["weights"]["candidate"] for e in plane.store.events.blocking() if e.data]
    assert sorted(set(weights)) == [10, 50, 100]
    assert weights == sorted(weights)


async def test_a_version_that_fails_more_is_rolled_back_with_its_numbers(world: World) -> None:
    world.error_ratio["2"] = 0.05
    plane = await started(world)

    record = await plane.until_over()

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert arms(plane) == {"1": 100}
    assert "errors" in record.state.reason
    event = plane.store.events.blocking()[-1]
    assert event.reason == "RolledBack"
    errors = next(m for m in event.data["verdict"]["metrics"] if m["metric"] == "errors")
    assert errors["outcome"] == "roll_back"
    assert errors["low"] > 0
    assert errors["candidate"] == pytest.approx(0.05, abs=0.01)


async def test_a_version_with_a_slow_tail_is_rolled_back(world: World) -> None:
    world.slow = {"1": 0.005, "2": 0.05}
    plane = await started(world)

    record = await plane.until_over()

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert "latency" in record.state.reason


async def test_a_version_that_cannot_load_is_rolled_back_and_never_gets_a_request(
    world: World,
) -> None:
    world.cannot_load.add("2")
    plane = await started(world)

    record = await plane.until_over(20)

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert "cannot load the model" in record.state.reason
    assert world.totals["digits", "2"].requests == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_a_control_plane_killed_at_every_step_goes_on(world: World, *, fails: bool) -> None:
    world.error_ratio["2"] = 0.03 if fails else 0.0
    plane = await started(world)
    seen: list[int] = []

    while not plane.record.state.phase.is_over:
        before = plane.record.state.phase, plane.record.state.step
        for _ in range(7):
            await plane.second(4000)
            seen.append(arms(plane).get("2", 0))
            if (plane.record.state.phase, plane.record.state.step) != before:
                break
        plane = plane.kill()

    expected = RolloutPhase.ROLLED_BACK if fails else RolloutPhase.PROMOTED
    assert plane.record.state.phase is expected
    assert fails or seen == sorted(seen)
    assert [e.reason for e in plane.store.events.blocking()].count("Started") == 1


@pytest.mark.parametrize(
    ("requests", "phase"), [(4, RolloutPhase.PAUSED), (4000, RolloutPhase.ROLLED_BACK)]
)
async def test_a_timeout_is_blamed_on_the_version_only_if_enough_requests_came(
    world: World, requests: int, phase: RolloutPhase
) -> None:
    """Its share of failed requests is at the margin, so no evidence decides."""
    world.error_ratio["2"] = 0.005
    steps = [{"weight": 50, "until": "verdict"}]
    plane = await started(world, {**CANARY, "steps": steps, "max_duration_s": 40.0})
    for _ in range(60):
        await plane.second(requests)
        # The time mostly ends between two readings.
        for _ in range(3):
            world.clock.time += 0.3
            await plane.driver.step()
        if plane.record.state.phase in {RolloutPhase.PAUSED, RolloutPhase.ROLLED_BACK}:
            break

    state = plane.record.state
    assert state.phase is phase, state.reason
    assert "not enough evidence within 40 s" in state.reason
    advice = "max_duration_s is 40 s: raise it, the new version's share or the margins, or resume"
    assert (advice in state.reason) == (phase is RolloutPhase.PAUSED)
    assert ("at 2.1 requests/s" in state.reason) == (phase is RolloutPhase.PAUSED)


async def test_words_of_people_hold_at_once_and_are_remembered(world: World) -> None:
    plane = await started(world)
    await plane.second()

    paused = await plane.driver.command("digits", Verb.PAUSE, actor="ada", reason="lunch")
    for _ in range(30):
        await plane.second()
    still = plane.record.state.traffic.candidate
    await plane.driver.command("digits", Verb.RESUME)
    await plane.driver.command("digits", Verb.ABORT, reason="no need")
    plane.settle()

    assert "lunch" in paused.state.reason
    assert still == 10
    assert plane.record.state.phase is RolloutPhase.ABORTED
    assert arms(plane) == {"1": 100}
    assert plane.store.events.blocking()[-1].reason == "Aborted"


async def test_intervals_over_time_outlive_control_planes_and_the_rollout(world: World) -> None:
    plane = await started(world)
    began = plane.world.clock.now()
    for _ in range(5):
        await plane.second()
    under_way = rollout_evidence(plane.record, plane.driver.sequences(plane.record))
    plane = plane.kill()
    record = await plane.until_over()

    plane = plane.kill()
    after = rollout_evidence(record, plane.driver.sequences(plane.record))
    times = [point.at for point in after.metrics[0].points]
    assert [one.metric for one in under_way.metrics] == ["errors", "latency"]
    assert len(under_way.metrics[0].points) > 1
    assert times[0] == under_way.metrics[0].points[0].at < began + 5
    assert record.state.verdict is not None
    assert times[-1] == record.state.verdict.at  # what decided is there


async def test_a_history_says_what_decided_and_after_how_long(world: World) -> None:
    plane = await started(world)
    await plane.until_over()
    promoted_s = plane.record.state.elapsed_s
    world.clock.time += 500.0
    await plane.driver.command("digits", Verb.ROLLBACK, actor="ada", reason="slow pages")
    world.error_ratio["2"] = 0.2
    await plane.desired_state.start_rollout("digits", version="2", rollout=CANARY, caller=SYSTEM)
    await plane.until_over()

    promoted, back, failed = ends_of(plane.store.events.blocking(endpoint="digits", kind="rollout"))
    assert [(end.id, end.phase, end.decided_by) for end in (promoted, back, failed)] == [
        ("r1", "promoted", "plan"),
        ("r1", "rolled_back", "ada"),
        ("r2", "rolled_back", "verdict"),
    ]
    assert promoted.duration_s == promoted_s > 2.0
    assert (promoted.from_version, promoted.to_version) == ("1", "2")
    assert "slow pages" in back.why
    assert "errors: 20 %" in failed.why


async def test_a_rollback_after_the_promotion_brings_the_old_version_back(world: World) -> None:
    plane = await started(world)
    await plane.until_over()

    await plane.driver.command("digits", Verb.ROLLBACK)
    plane.settle()

    assert arms(plane) == {"1": 100}
    assert plane.kill().target_state.rollout("digits") is not None


async def test_words_that_mean_nothing_are_refused(world: World) -> None:
    plane = world.boot()
    await plane.desired_state.apply(
        {"endpoints": [{"name": "digits", "model": "digits:1"}]}, caller=SYSTEM
    )

    with pytest.raises(NotFoundError, match="has no rollout"):
        await plane.driver.command("digits", Verb.PROMOTE)
    with pytest.raises(EndpointNotFoundError):
        await plane.driver.command("letters", Verb.PROMOTE)
    await plane.desired_state.start_rollout("digits", version="2", caller=SYSTEM)
    await plane.driver.command("digits", Verb.ABORT)
    with pytest.raises(FailedPreconditionError, match="cannot pause"):
        await plane.driver.command("digits", Verb.PAUSE)


async def test_blue_green_switches_at_once_and_back_at_once(world: World) -> None:
    plane = await started(world, {"strategy": "blue-green", "keep_s": 60.0})
    for _ in range(4):
        await plane.second()
    switched = arms(plane)
    held = {replica.version for replica in world.replicas.values()}

    await plane.driver.command("digits", Verb.ROLLBACK)
    plane.settle()

    assert switched == {"2": 100, "1": 0}
    assert held == {"1", "2"}
    assert arms(plane) == {"1": 100}


async def test_a_version_that_turns_bad_after_a_blue_green_switch_goes_back(world: World) -> None:
    plane = await started(world, {"strategy": "blue-green", "keep_s": 60.0})
    for _ in range(8):
        await plane.second(100)
    assert arms(plane) == {"2": 100, "1": 0}
    world.error_ratio["2"] = 1.0

    record = await plane.until_over(10)

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert arms(plane) == {"1": 100}
    assert "at most 5 % are tolerated" in plane.record.state.reason


async def test_a_concurrent_baseline_is_compared_with_and_goes_away(world: World) -> None:
    plane = await started(world, {**CANARY, "baseline": True})
    await plane.second()
    during = arms(plane)

    record = await plane.until_over()

    assert during == {"2": 10, "1~baseline": 10, "1": 80}
    assert record.state.phase is RolloutPhase.PROMOTED
    assert arms(plane) == {"2": 100}
    assert len(world.replicas) == 1


async def test_replicas_of_a_rollout_are_told_what_to_look_at(world: World) -> None:
    plane = await started(world, {"strategy": "canary", "metrics": {"predictions": {}}})
    await plane.second()
    record = plane.record

    replicas = plane.driver.observed_replicas()
    wishes = [plane.driver.observe(replica) for replica in replicas]
    await plane.driver.command("digits", Verb.ABORT)

    assert {replica.version for replica in replicas} == {"1", "2"}
    assert wishes == [Observe(key=record.id, predictions=True)] * 2
    assert plane.driver.observed_replicas() == []
    assert plane.driver.observe(replicas[0]) == Observe()


async def test_a_candidate_that_keeps_crashing_is_rolled_back(world: World) -> None:
    plane = await started(world)
    await plane.second()
    crashed = next(r for r in world.replicas.values() if r.version == "2")
    world.replicas[crashed.name] = replace(
        crashed, phase=ReplicaPhase.EXITED, failures=3, retry_at=1e12, reason="ended by signal 11"
    )

    record = await plane.until_over(5)

    assert record.state.phase is RolloutPhase.ROLLED_BACK
    assert "ended by signal 11" in record.state.reason


async def test_evidence_survives_a_restart_exactly(world: World) -> None:
    plane = await started(world)
    for _ in range(12):
        await plane.second(50)
    before = RolloutEvidenceState.decode(plane.record.state.settings, plane.record.evidence)

    after = plane.kill().record

    assert after.evidence == plane.record.evidence
    assert before.summary()["intervals"] > 0


async def test_evidence_that_cannot_be_read_is_counted_anew(world: World) -> None:
    plane = await started(world)
    await plane.second()
    damaged = msgspec.structs.replace(plane.record, evidence=b"\xc1")
    plane.store.save_rollout.blocking(damaged)

    plane = plane.kill()
    record = await plane.until_over()

    assert record.state.phase is RolloutPhase.PROMOTED


async def test_answers_count_once_every_replica_of_both_versions_has_told_its_own(
    world: World,
) -> None:
    plane = await started(world, {**CANARY, "metrics": {"rejections": None}})
    await plane.second()
    view = LiveRollout.of(plane.record, plane.target_state)
    assert view is not None
    assert len(view.answering) == 2
    told = {
        replica.name: ReplicaReport(
            replica=replica.name,
            model="digits",
            version=replica.version,
            at=0.0,
            ready=True,
            observing=msgspec.json.encode(view.observe(replica, 1.0)).decode(),
            predictions=PredictionCounts(output="y", kind="class", counts={"7": 30}),
        )
        for replica in view.answering
    }

    def reading(reports: dict[str, ReplicaReport]) -> RolloutReading:
        return view.reading(now=1.0, epoch="1", totals={}, reports=reports)

    both = reading(told)
    assert both.all_told
    assert sorted(counted.is_candidate for counted in both.predictions.values()) == [False, True]
    for name in told:
        without = reading({other: said for other, said in told.items() if other != name})
        assert not without.all_told
        assert len(without.predictions) == 1
