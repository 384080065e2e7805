"""Which worker is started, stopped or replaced next."""

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from headrace.control.streams.plan import (
    KILL_AFTER_S,
    LOAD_TIMEOUT_S,
    SILENT_TIMEOUT_S,
    STALLED_TIMEOUT_S,
    Action,
    Forget,
    Kill,
    ObservedWorker,
    Replace,
    StartWorker,
    Stop,
    WorkerPhase,
    WorkerTimeouts,
    plan,
)

DRAIN_S = 30.0
PATIENCE = WorkerTimeouts(drain_timeout_s=DRAIN_S)


def seen(
    index: int,
    phase: WorkerPhase = WorkerPhase.READY,
    revision: str = "a",
    *,
    kill_sent: bool = False,
    **more: float,
) -> ObservedWorker:
    times = {"since": 0.0, **more}
    return ObservedWorker(index=index, revision=revision, phase=phase, kill_sent=kill_sent, **times)


def planned(
    *workers: ObservedWorker, count: int = 2, revision: str = "a", now: float = 100.0
) -> list[Action]:
    return plan(workers, revision=revision, count=count, timeouts=PATIENCE, now=now)


def test_a_member_that_ended_starts_when_its_time_has_come() -> None:
    assert planned(seen(0), seen(1, WorkerPhase.ENDED, start_at=101.0)) == []
    assert planned(seen(0), seen(1, WorkerPhase.ENDED, start_at=100.0)) == [StartWorker(1)]


def test_one_that_does_not_end_is_killed_after_its_drain() -> None:
    late = DRAIN_S + KILL_AFTER_S

    assert planned(seen(0), seen(1, WorkerPhase.STOPPING, since=101.0 - late)) == []
    assert planned(seen(0), seen(1, WorkerPhase.STOPPING, since=100.0 - late)) == [Kill(1)]


def test_one_that_answers_nobody_for_too_long_is_replaced_once() -> None:
    silent = seen(0, silent_since=100.0 - SILENT_TIMEOUT_S)

    assert planned(seen(0, silent_since=101.0 - SILENT_TIMEOUT_S), count=1) == []
    assert planned(silent, count=1) == [Replace(0, "gave no response for 60 s")]
    assert planned(replace(silent, kill_sent=True), count=1) == []


def test_one_that_loads_its_model_may_be_silent_for_longer() -> None:
    loading = seen(0, WorkerPhase.STARTING, silent_since=0.0)

    assert planned(loading, count=1, now=LOAD_TIMEOUT_S - 1.0) == []
    assert planned(loading, count=1, now=LOAD_TIMEOUT_S) == [
        Replace(0, "gave no response for 600 s")
    ]


def test_one_whose_brokers_client_never_returns_is_replaced_though_it_answers() -> None:
    assert planned(seen(0, still_s=STALLED_TIMEOUT_S - 1.0), count=1) == []
    assert planned(seen(0, still_s=STALLED_TIMEOUT_S), count=1) == [
        Replace(0, "has waited for its broker's client for 180 s")
    ]


def test_one_that_is_silent_and_not_wanted_or_told_to_stop_has_its_drain() -> None:
    assert planned(seen(0, silent_since=0.0), count=0) == [Stop(0)]
    assert planned(seen(0, WorkerPhase.STOPPING, since=99.0, silent_since=0.0), count=1) == []


def test_while_a_silent_one_is_ended_a_new_revision_takes_no_other_place() -> None:
    silent = seen(0, silent_since=0.0)

    assert planned(silent, seen(1), revision="b") == [Replace(0, "gave no response for 100 s")]
    assert planned(replace(silent, kill_sent=True), seen(1), revision="b") == []
    assert planned(seen(0, WorkerPhase.ENDED), seen(1), revision="b") == [StartWorker(0)]


def test_a_new_revision_takes_one_place_at_a_time() -> None:
    assert planned(seen(0), seen(1), revision="b") == [Stop(0)]
    assert planned(seen(0, WorkerPhase.STOPPING, since=99.0), seen(1), revision="b") == []
    assert planned(seen(0, WorkerPhase.ENDED), seen(1), revision="b") == [StartWorker(0)]
    assert planned(seen(0, WorkerPhase.STARTING, "b"), seen(1), revision="b") == []
    assert planned(seen(0, WorkerPhase.READY, "b"), seen(1), revision="b") == [Stop(1)]


def test_a_revision_that_cannot_start_leaves_the_others_at_work() -> None:
    broken = seen(0, WorkerPhase.ENDED, "b", start_at=500.0)

    assert planned(broken, seen(1), revision="b") == []


def test_a_new_revision_does_not_wait_for_what_was_wrong_with_the_last() -> None:
    broken = seen(0, WorkerPhase.ENDED, "a", start_at=500.0)

    assert planned(broken, seen(1, WorkerPhase.READY, "b"), revision="b") == [StartWorker(0)]


@dataclass
class World:
    """Does what is planned; processes take a second for everything."""

    workers: dict[int, ObservedWorker] = field(default_factory=dict)
    now: float = 0.0

    def run(self, seconds: int, *, count: int, revision: str) -> None:
        for _ in range(seconds):
            self.now += 1.0
            actions = plan(
                list(self.workers.values()),
                revision=revision,
                count=count,
                timeouts=PATIENCE,
                now=self.now,
            )
            self._pass()
            for action in actions:
                self._do(action, revision)

    def _pass(self) -> None:
        after = {WorkerPhase.STARTING: WorkerPhase.READY, WorkerPhase.STOPPING: WorkerPhase.ENDED}
        for index, worker in self.workers.items():
            phase = after.get(worker.phase, worker.phase)
            self.workers[index] = replace(worker, phase=phase)

    def _do(self, action: Action, revision: str) -> None:
        index = action.index
        match action:
            case StartWorker():
                assert index not in self.workers or self.workers[index].phase is WorkerPhase.ENDED
                self.workers[index] = seen(index, WorkerPhase.STARTING, revision, since=self.now)
            case Stop() | Kill():
                self.workers[index] = replace(self.workers[index], phase=WorkerPhase.STOPPING)
            case Forget():
                del self.workers[index]


@given(
    before=st.integers(min_value=0, max_value=6),
    after=st.integers(min_value=0, max_value=6),
    revision=st.sampled_from("ab"),
)
def test_whatever_is_wanted_comes_to_be_and_stays(before: int, after: int, revision: str) -> None:
    world = World()
    world.run(10, count=before, revision="a")
    world.run(60, count=after, revision=revision)
    then = dict(world.workers)
    world.run(5, count=after, revision=revision)

    assert set(world.workers) == set(range(after))
    assert all(
        w.phase is WorkerPhase.READY and w.revision == revision for w in world.workers.values()
    )
    assert world.workers == then


@given(count=st.integers(min_value=2, max_value=6))
def test_while_a_revision_is_replaced_all_but_one_are_at_work(count: int) -> None:
    world = World()
    world.run(10, count=count, revision="a")
    for _ in range(60):
        world.run(1, count=count, revision="b")
        ready = sum(worker.phase is WorkerPhase.READY for worker in world.workers.values())
        assert ready >= count - 1
