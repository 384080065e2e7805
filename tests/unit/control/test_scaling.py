"""Counts by load: each arm's own, the split's, the machine's, and those of an endpoint asleep."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest

from headrace.control.base.home import Home
from headrace.control.model.desired import make_revision
from headrace.control.model.observed import ReplicaPhase
from headrace.control.model.records import Event, RolloutRecord
from headrace.core import EndpointName, FailedPreconditionError, UnavailableError
from headrace.core.spec.rollout import CanarySpec
from headrace.core.spec.scale import BudgetSpec, ScaleScheduleSpec
from headrace.gateway.statistics import ArmStatistics
from headrace.monitor import RequestHistory
from headrace.rollout.state import RolloutPhase, RolloutState, TrafficShares
from tests.unit.control.scaling_lab import SETTINGS, T0, Lab, arm, endpoint

ZERO = msgspec.structs.replace(SETTINGS, min_replicas=0, idle_s=10.0)


@pytest.fixture
def lab(home: Home) -> Lab:
    return Lab(home)


def test_copies_come_with_the_load_and_go_after_it(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))

    up = lab.run(60, {"1": 40.0})
    down = lab.run(240, {"1": 2.0})

    assert up[-1] == 6
    assert down[-1] == 1
    kinds = {(event.kind, event.endpoint) for event in lab.events}
    assert kinds == {("scale", "a")}
    assert lab.events[0].data["from"] == 1
    assert lab.events[0].message.startswith("version 1: 1 ▸ ")
    grown = next(event for event in lab.events if event.data["to"] == 6)
    assert grown.data["arrivals"] == pytest.approx(40.0, rel=0.1)
    assert grown.reason in {"Load", "Burst"}
    assert lab.events[-1].reason == "LessLoad"


def test_a_constant_load_changes_nothing_once_it_is_met(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})

    assert set(lab.run(300)) == {6}


@pytest.mark.parametrize(("runtime", "count"), [("gguf", 2), ("onnx", 1)])
def test_late_first_tokens_add_a_copy_of_a_language_model(
    lab: Lab, runtime: str, count: int
) -> None:
    scale = msgspec.structs.replace(SETTINGS, target_in_flight=100.0, slo_latency_s=0.5)
    plain = arm("a", "1")
    settings = msgspec.structs.replace(plain.revision.settings, runtime=runtime)
    revision = make_revision(endpoint=EndpointName("a"), model="a:1", settings=settings)
    lab.set_desired(
        endpoint("a", msgspec.structs.replace(plain, revision=revision), autoscale=scale)
    )
    streams = RequestHistory()
    lab.scaler.use_streams(streams)
    streams.advance(lab.clock.time)
    for second in range(1, 40):
        ended = {(2.0, 0.1): 10 * second}
        streams.add(lab.clock.time, "a", "1", ArmStatistics(requests=10 * second, latency=ended))
        lab.run(1, {"1": 30.0})

    assert len(lab.replicas) == count
    assert [event.reason for event in lab.events] == ["Pressure"] * (count - 1)


def test_replicas_that_say_nothing_are_not_taken_away(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})

    lab.silent = True

    assert set(lab.run(300)) == {6}
    decision = lab.scaler.decision("a", "1")
    assert decision is not None
    assert decision.reason == "MissingMetrics"


def test_a_report_that_comes_late_is_no_missing_one(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})

    lab.rates = {"1": 2.0}
    for second in range(300):
        lab.silent = second % 3 == 1
        lab.second()

    assert len(lab.replicas) == 1


def test_an_idle_endpoint_sleeps_until_somebody_asks(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1"), autoscale=ZERO))
    awake = lab.run(20, {"1": 5.0})
    asleep = lab.run(30, {"1": 0.0})

    assert awake[-1] == 1
    assert asleep[-1] == 0
    assert lab.scaler.zeroed == {"a"}
    assert lab.target_state.reconciler.desired.endpoints[0].scaled_to_zero

    lab.start_s = 3.0
    lab.scaler.wake("a")
    woken = lab.run(5)

    assert set(woken) == {1}
    assert lab.scaler.zeroed == frozenset()
    assert {event.reason for event in lab.events} == {"Idle", "Woken"}
    assert lab.run(20)[-1] == 0, "and sleeps again if nobody comes any more"


def test_sleep_outlasts_the_control_plane(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1"), autoscale=ZERO))
    lab.run(30, {"1": 0.0})
    lab.scaler.store()

    lab.restart()
    lab.set_desired(endpoint("a", arm("a", "1"), autoscale=ZERO))

    assert set(lab.run(30)) == {0}


def test_counts_outlast_the_control_plane(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})
    lab.scaler.store()

    lab.restart()
    lab.set_desired(endpoint("a", arm("a", "1")))

    assert len(lab.replicas) == 6, "before anything was decided"
    assert set(lab.run(60)) == {6}


def test_a_memory_that_cannot_be_read_or_kept_is_no_reason_to_stop(lab: Lab, home: Home) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    path = home.root / "scaling.json"
    path.write_bytes(b"[]")

    lab.restart()
    path.unlink()
    path.mkdir()
    lab.restart()
    lab.run(3, {"1": 5.0})
    lab.scaler.store()

    assert len(lab.replicas) == 1


def test_a_version_that_takes_over_begins_with_what_the_old_one_needed(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})

    lab.set_desired(endpoint("a", arm("a", "2")))

    assert len(lab.replicas) == 6
    assert min(lab.run(120, {"2": 40.0})) == 6


def test_each_arm_of_a_split_has_its_share(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})

    lab.set_desired(endpoint("a", arm("a", "1", weight=50), arm("a", "2", weight=50)))

    assert lab.scaler.counts["a", "2"] == 3
    lab.run(200, {"1": 20.0, "2": 20.0})
    assert lab.scaler.counts == {("a", "1"): 4, ("a", "2"): 3}


def test_an_arm_that_nobody_asks_stays_while_another_is_asked(lab: Lab) -> None:
    arms = (arm("a", "1", weight=99), arm("a", "2", weight=1))
    lab.set_desired(endpoint("a", *arms, autoscale=ZERO))

    lab.run(60, {"1": 5.0})
    assert lab.scaler.counts["a", "2"] == 1

    lab.run(60, {})
    assert lab.scaler.zeroed == {"a"}


def rollout(lab: Lab, traffic: TrafficShares) -> RolloutRecord:
    source = endpoint("a", arm("a", "1"))
    target = msgspec.structs.replace(endpoint("a", arm("a", "2")), generation=2)
    state = RolloutState(
        settings=CanarySpec(),
        phase=RolloutPhase.PROGRESSING,
        began=lab.clock.time,
        since=lab.clock.time,
        traffic=traffic,
    )
    return RolloutRecord(
        id="r1", endpoint="a", created=T0, source=source, target=target, state=state
    )


def test_capacity_is_there_before_a_rollouts_weight(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})

    record = rollout(lab, TrafficShares(candidate=10, candidate_scale=0.5))
    lab.target_state.rollouts["a"] = record
    lab.set_desired(record.target)

    assert lab.scaler.counts == {("a", "1"): 6, ("a", "2"): 3}
    lab.run(120, {"1": 20.0, "2": 20.0})
    assert lab.scaler.counts["a", "1"] == 6, "the way back is there at once"


def test_an_endpoint_does_not_sleep_during_a_rollout(lab: Lab) -> None:
    record = rollout(lab, TrafficShares(candidate=10))
    record = msgspec.structs.replace(
        record, target=msgspec.structs.replace(record.target, autoscale=ZERO)
    )
    lab.target_state.rollouts["a"] = record
    lab.set_desired(record.target)

    lab.run(60, {})

    assert lab.scaler.zeroed == frozenset()
    assert set(lab.scaler.counts.values()) == {1}


def test_the_schedule_is_shared_out_by_weight(lab: Lab) -> None:
    hint = ScaleScheduleSpec(cron="* * * * *", duration_s=60.0, min_replicas=6)
    settings = msgspec.structs.replace(SETTINGS, schedule=(hint,))
    arms = (arm("a", "1", weight=80), arm("a", "2", weight=20))

    lab.set_desired(endpoint("a", *arms, autoscale=settings))
    lab.run(2)

    assert lab.scaler.counts == {("a", "1"): 5, ("a", "2"): 2}


def test_memory_of_the_machine_bounds_the_count_and_says_so(lab: Lab) -> None:
    lab.budget = BudgetSpec(memory_bytes=350_000_000)
    lab.rss_bytes = 100_000_000
    lab.set_desired(endpoint("a", arm("a", "1")))

    assert lab.run(60, {"1": 60.0})[-1] == 3
    cuts = [event for event in lab.events if event.reason == "Budget"]
    assert 1 <= len(cuts) <= 2, "said when it begins, not every second"
    assert "one more needs 100 MB, 50 MB of 350 MB are left" in cuts[-1].message
    assert lab.scaler.cut("a", "1")
    assert lab.scaler.cut("b", "1") == ""


def test_cores_bound_the_count_where_a_model_needs_them(lab: Lab) -> None:
    lab.budget = BudgetSpec(cpus=4.0)
    lab.cpu_per_request_s = 0.1
    lab.set_desired(endpoint("a", arm("a", "1")))

    assert lab.run(60, {"1": 35.0})[-1] == 5, "at 70 % each they use 3.5 cores"
    assert lab.run(60, {"1": 70.0})[-1] == 5


def test_a_machine_whose_cores_are_all_in_use_gets_no_more_copies(lab: Lab) -> None:
    lab.budget = BudgetSpec(cpus=2.0)
    lab.cpu_per_request_s = 0.02
    lab.set_desired(endpoint("a", arm("a", "1")))
    before = lab.run(60, {"1": 30.0})[-1]

    lab.cpu_per_request_s = 0.5
    lab.run(5, {"1": 70.0})

    assert max(lab.run(10)) <= before
    assert any("cores" in event.message for event in lab.events)


def test_endpoints_share_the_machine_fairly(lab: Lab) -> None:
    lab.budget = BudgetSpec(memory_bytes=500_000_000)
    lab.rss_bytes = 100_000_000
    lab.set_desired(endpoint("a", arm("a", "1")), endpoint("b", arm("b", "2")))

    lab.run(90, {"1": 60.0, "2": 60.0})

    assert sorted(lab.scaler.counts.values()) == [2, 3]


def test_endpoints_that_are_gone_are_forgotten(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")), endpoint("b", arm("b", "1"), autoscale=None))
    lab.run(3, {"1": 5.0})
    assert set(lab.scaler.counts) == {("a", "1")}
    assert {replica.endpoint for replica in lab.scaler.observed_replicas()} == {"a"}

    lab.set_desired()
    lab.run(2)

    assert lab.scaler.counts == {}
    assert lab.scaler.decision("a", "1") is None
    assert lab.scaler.observed_replicas() == []


def test_copies_that_crash_count_as_coming(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(60, {"1": 40.0})
    crashed = next(iter(lab.replicas.values()))

    lab.replicas[crashed.name] = replace(crashed, phase=ReplicaPhase.EXITED, since=lab.clock.time)
    lab.run(10)

    assert lab.scaler.counts["a", "1"] == 6


def test_weights_never_flap_counts(lab: Lab) -> None:
    arms = (arm("a", "1", weight=80), arm("a", "2", weight=20))
    lab.set_desired(endpoint("a", *arms))
    lab.run(60, {"1": 32.0, "2": 8.0})

    seen = lab.run(400)

    assert sum(a != b for a, b in pairwise(seen)) <= 1


@pytest.mark.anyio
async def test_it_decides_at_once_when_woken_and_keeps_what_it_knows(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1"), autoscale=ZERO))
    lab.run(30, {"1": 0.0})
    told: asyncio.Queue[list[Event]] = asyncio.Queue()

    async def note(events: Sequence[Event]) -> None:
        told.put_nowait(list(events))

    lab.scaler.emit = note
    running = asyncio.create_task(lab.scaler.run())
    async with asyncio.timeout(10.0):
        await told.get()
        lab.scaler.wake("a", held=2)
        events = await told.get()
    running.cancel()
    await asyncio.wait({running})

    assert [event.reason for event in events] == ["Woken"]
    assert not lab.target_state.reconciler.desired.endpoints[0].scaled_to_zero
    states = lab.scaler.memory.load()
    assert states is not None
    assert states.arms["a"]["1"].replicas == 1


@pytest.mark.anyio
async def test_what_the_gateway_waits_for_is_asked_and_may_be_unknown(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    lab.run(30, {"1": 5.0})
    answers: list[dict[tuple[str, str], int] | None] = [{("a", "1"): 300}, None]
    told: asyncio.Queue[list[Event]] = asyncio.Queue()

    async def active() -> dict[tuple[str, str], int]:
        answer = answers.pop(0)
        if answer is None:
            raise UnavailableError("the gateway is being started")
        return answer

    async def note(events: Sequence[Event]) -> None:
        told.put_nowait(list(events))

    lab.scaler.active, lab.scaler.emit = active, note
    lab.clock.time += 1.0
    lab.report(lab.ready()[0])
    running = asyncio.create_task(lab.scaler.run())
    async with asyncio.timeout(10.0):
        grown = await told.get()
        lab.scaler.wake("a")
        await told.get()
    running.cancel()
    await asyncio.wait({running})

    assert [event.data["to"] for event in grown] == [4]


@pytest.mark.anyio
async def test_a_store_that_fails_does_not_end_it(lab: Lab) -> None:
    lab.set_desired(endpoint("a", arm("a", "1")))
    calls: asyncio.Queue[int] = asyncio.Queue()

    async def fail(_events: Sequence[Event]) -> None:
        calls.put_nowait(1)
        raise FailedPreconditionError("the disk is full")

    lab.scaler.emit = fail
    running = asyncio.create_task(lab.scaler.run())
    async with asyncio.timeout(10.0):
        await calls.get()
        lab.scaler.wake("a")
        await calls.get()

    assert not running.done()
    running.cancel()
    await asyncio.wait({running})
