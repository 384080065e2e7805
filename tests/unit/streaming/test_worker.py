"""A worker over many sessions: it joins again, pauses, tells and stops."""

from collections.abc import Callable
from functools import partial
from threading import Event
from typing import TypeVar

import pytest

from headrace.core import (
    ConflictError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.streaming.broker import Membership, Rebalanced, ReplacedError
from headrace.streaming.in_flight import Outcome, ScoringBatch
from headrace.streaming.poll_loop import REPORT_SLOW_AFTER_S
from headrace.streaming.records import TopicPartition
from headrace.streaming.settings import StreamStatus, WorkerState
from headrace.streaming.worker import (
    CHECK_EVERY_S,
    JOIN_TIMEOUT_S,
    MAX_CONFLICTS,
    STALL_TIMEOUT_S,
    WorkerLoop,
)
from headrace.testing.streams import MemoryBroker, MemorySession, TurnedClock, TurnedRunner
from tests.unit.streaming.world import (
    DEAD,
    GROUP,
    IN,
    OUT,
    Reader,
    answer,
    inputs,
    settings,
    where,
)

T = TypeVar("T")


class Stage:
    """A worker on a clock that is turned; what happens is arranged before it runs."""

    def __init__(self, *, paused: bool = False) -> None:
        self.clock = TurnedClock()
        self.broker = Refusing(self.clock)
        self.broker.create_topic(IN, partitions=2)
        self.worker = WorkerLoop(
            settings(paused=paused),
            self.broker,
            clock=self.clock,
            wait=self.wait,
        )
        self.runner = TurnedRunner(self.clock, self.answer, wake=self.worker.wake)
        self.away = False
        self.states: list[WorkerState] = []

    def answer(self, batch: ScoringBatch) -> list[Outcome] | HeadraceError:
        if self.away:
            return UnavailableError("the store is away")
        return [answer(one) for one in batch.records]

    def wait(self, event: Event, seconds: float) -> None:
        self.states.append(self.worker.status.state)
        self.clock.turn_until(event.is_set, most_s=seconds)

    def run(self, seconds: float) -> None:
        self.clock.later(seconds, self.worker.stop)
        self.worker.run(self.runner)

    def seen(self, *times: float, look: Callable[[StreamStatus], T]) -> list[T]:
        """What `look` tells of the status at these times, while the worker runs."""
        found: list[T] = []
        for at in times:
            self.clock.later(at, lambda: found.append(look(self.worker.status)))
        return found

    def answered(self) -> list[int]:
        return sorted(where(one)[1] for one in self.broker.all(OUT))


class Refusing(MemoryBroker):
    """Refuses to be joined as long as it is told to."""

    def __init__(self, clock: TurnedClock) -> None:
        super().__init__(clock)
        self.refusals: list[HeadraceError] = []

    def join(self, membership: Membership, listener: Rebalanced) -> MemorySession:
        if self.refusals:
            raise self.refusals.pop(0)
        return super().join(membership, listener)


def test_it_streams_until_it_is_stopped_and_leaves_its_group() -> None:
    stage = Stage()
    stage.broker.send(inputs(10, partitions=2))
    stage.run(5.0)

    assert stage.answered() == sorted([*range(5), *range(5)])
    assert stage.worker.status.state is WorkerState.STOPPED
    assert (stage.worker.status.read, stage.worker.status.answered) == (10, 10)
    assert len(stage.broker.ends(OUT)) == len(stage.broker.ends(DEAD)) == 2
    stage.broker.set_committed(GROUP, {})  # refused while a member is there


def test_a_session_that_is_over_is_followed_by_another() -> None:
    stage = Stage()
    stage.broker.send(inputs(4))
    stage.clock.later(2.0, lambda: broken(stage))
    stage.clock.later(2.0, lambda: stage.broker.send(inputs(4)))
    stage.run(20.0)

    assert stage.states == [WorkerState.RECONNECTING]
    assert stage.worker.counters.sessions == 2
    assert stage.answered() == list(range(8))
    assert stage.worker.status.last_error == "a broken transaction"


def broken(stage: Stage) -> None:
    stage.broker.sessions[-1].fails = UnavailableError("a broken transaction")


def test_a_topic_that_is_not_there_yet_is_waited_for() -> None:
    stage = Stage()
    stage.broker.refusals = [NotFoundError("there is no topic 'in'") for _ in range(4)]
    stage.broker.send(inputs(1))
    stage.run(60.0)

    assert stage.states == [WorkerState.RECONNECTING] * 4
    assert stage.answered() == [0]


def test_a_broker_that_refuses_for_good_ends_it() -> None:
    stage = Stage()
    stage.broker.refusals = [InvalidArgumentError("no group has such a name")]
    with pytest.raises(InvalidArgumentError, match="no group"):
        stage.run(60.0)


def test_who_is_replaced_once_comes_back_and_who_is_again_and_again_gives_up() -> None:
    once = Stage()
    once.broker.refusals = [ConflictError("replaced")]
    once.run(60.0)
    again = Stage()
    again.broker.refusals = [ConflictError("replaced") for _ in range(MAX_CONFLICTS)]
    with pytest.raises(ConflictError):
        again.run(60.0)

    assert once.worker.counters.sessions == 1
    assert again.worker.counters.sessions == 0


def test_who_is_replaced_by_another_process_ends_at_once() -> None:
    stage = Stage()
    stage.broker.refusals = [ReplacedError("another process joined")]
    with pytest.raises(ReplacedError):
        stage.run(60.0)


def test_errors_between_conflicts_are_no_conflicts() -> None:
    stage = Stage()
    stage.broker.refusals = [
        error
        for _ in range(MAX_CONFLICTS)
        for error in (ConflictError("fenced"), UnavailableError("away"))
    ]
    stage.run(100.0)

    assert stage.worker.counters.sessions == 1


def test_each_session_creates_the_output_topics_and_learns_their_limits() -> None:
    stage = Stage()
    stage.broker.limits = {OUT: 1000}
    stage.clock.later(2.0, lambda: stage.broker.delete_topic(OUT))
    stage.clock.later(2.0, lambda: broken(stage))
    stage.clock.later(2.0, lambda: stage.broker.send(inputs(4)))
    stage.run(20.0)

    assert stage.worker.counters.sessions == 2
    assert stage.answered() == list(range(4))
    assert stage.worker.limits == {OUT: 1000}


def checks(stage: Stage, seconds: float) -> list[str]:
    """Return what a watchdog reports that checks the worker for this long."""
    return [stage.worker.stall() for _ in range(round(seconds / CHECK_EVERY_S))]


def test_a_stall_is_reported_after_its_time_and_progress_ends_it() -> None:
    stage = Stage()
    reports: list[str] = []

    def hang() -> None:
        """Within a poll: first for a moment, then for too long."""
        reports.extend(checks(stage, 1.0 + STALL_TIMEOUT_S))

    stage.clock.later(5.0, lambda: reports.extend(checks(stage, STALL_TIMEOUT_S - 1.0)))
    stage.clock.later(10.0, hang)
    stage.run(20.0)

    assert not any(reports[:-1])
    assert reports[-1] == "has waited for its broker's client for 20 s"


def test_a_stop_does_not_delay_the_report_of_a_stall() -> None:
    stage = Stage()
    reports: list[str] = []

    def hang() -> None:
        stage.worker.stop()
        reports.extend(checks(stage, 1.0 + STALL_TIMEOUT_S))

    stage.clock.later(5.0, hang)
    stage.run(20.0)

    assert reports[-1]


def test_a_worker_that_joins_may_take_longer_and_a_frozen_one_has_not_stalled() -> None:
    stage = Stage()
    stage.clock.turn(10 * JOIN_TIMEOUT_S)

    assert not any(checks(stage, JOIN_TIMEOUT_S - 1.0))
    assert all(checks(stage, CHECK_EVERY_S))


def test_a_member_that_the_coordinator_does_not_list_does_not_run() -> None:
    stage = Stage()
    seen = stage.seen(1.9, 3.9, look=lambda status: status.state)

    def is_listed(*, value: bool) -> None:
        stage.broker.sessions[-1].is_member = value

    stage.clock.later(1.0, lambda: is_listed(value=False))
    stage.clock.later(3.0, lambda: is_listed(value=True))
    stage.run(5.0)

    assert seen == [WorkerState.RECONNECTING, WorkerState.RUNNING]


def test_records_that_retention_deleted_count_over_all_sessions() -> None:
    stage = Stage()
    for at in (1.0, 9.0):
        stage.clock.later(at, lambda: setattr(stage.broker.sessions[-1], "expired", 300))
    stage.clock.later(2.0, lambda: broken(stage))
    stage.clock.later(2.0, lambda: stage.broker.send(inputs(1)))
    stage.run(20.0)

    assert stage.worker.counters.sessions == 2
    assert stage.worker.status.expired == 600


def test_a_stop_does_not_wait_for_a_broker_that_is_away() -> None:
    stage = Stage()
    stage.broker.refusals = [UnavailableError("away") for _ in range(100)]
    stage.run(7.0)

    assert stage.clock.monotonic() == pytest.approx(7.0, abs=0.01)


def test_it_may_be_paused_and_resumed() -> None:
    stage = Stage(paused=True)
    stage.broker.send(inputs(4))
    seen = stage.seen(1.9, 3.9, look=lambda status: (status.state, status.read))
    stage.clock.later(2.0, stage.worker.resume)
    stage.run(5.0)

    assert seen == [(WorkerState.PAUSED, 0), (WorkerState.RUNNING, 4)]


def test_what_is_away_is_told() -> None:
    stage = Stage()
    stage.away = True
    stage.broker.send(inputs(2))
    seen = stage.seen(
        5.0, look=lambda told: (told.state, told.problem, told.partitions[0].lag_records)
    )
    stage.run(6.0)

    assert seen == [(WorkerState.RETRYING, "the store is away", 2)]


def test_a_lag_that_is_unknown_is_told_with_its_reason() -> None:
    stage = Stage()
    stage.broker.send(inputs(2))
    seen = stage.seen(
        4.0, 6.0, look=lambda told: (told.state, told.lag_problem, told.partitions[0].lag_records)
    )
    for at, error in ((2.0, UnavailableError("no admin API")), (4.5, None)):
        stage.clock.later(at, partial(setattr, stage.broker, "lag_error", error))
    stage.run(7.0)

    assert seen == [(WorkerState.RUNNING, "no admin API", None), (WorkerState.RUNNING, "", 0)]


def test_a_broker_that_is_away_is_told_and_so_is_when_it_is_back() -> None:
    stage = Stage()
    seen = stage.seen(0.9, 2.9, 5.0, look=lambda status: (status.state, status.problem))
    for at, is_away in ((1.0, True), (3.0, False)):
        stage.clock.later(at, partial(setattr, stage.broker, "is_away", is_away))
    stage.run(6.0)

    assert seen == [
        (WorkerState.RUNNING, ""),
        (WorkerState.RETRYING, "the broker in memory is away"),
        (WorkerState.RUNNING, ""),
    ]


def test_a_call_of_the_broker_that_does_not_return_is_told() -> None:
    stage = Stage()
    stage.broker.send(inputs(2))
    seen = stage.seen(5.0, 109.0, look=lambda status: status.still_s)
    stage.clock.later(10.0, lambda: stage.clock.turn(100.0))  # within a poll
    stage.run(120.0)

    assert seen == [pytest.approx(0.0, abs=1.0), pytest.approx(99.0, abs=1.0)]


def test_it_tells_for_how_long_it_has_had_no_place() -> None:
    stage = Stage()
    other = stage.broker.join(Membership(group=GROUP, member="two", topics=(IN,)), Reader())
    other.poll(0, 0.0)
    seen = stage.seen(50.0, 70.0, look=lambda status: status.unassigned_s)
    stage.clock.later(
        60.0,
        lambda: stage.broker.give(
            GROUP, TopicPartition(IN, 0), stage.broker.sessions[-1], is_seized=True
        ),
    )
    stage.run(80.0)

    assert seen == [pytest.approx(50.0, abs=1.0), pytest.approx(0.0, abs=1.0)]


def test_a_model_that_keeps_its_records_for_long_is_told_and_the_worker_lives() -> None:
    stage = Stage()
    stage.runner = TurnedRunner(
        stage.clock, stage.answer, seconds=lambda _: 100.0, wake=stage.worker.wake
    )
    stage.broker.send(inputs(2))
    times = REPORT_SLOW_AFTER_S - 5.0, REPORT_SLOW_AFTER_S + 5.0, 110.0
    seen = stage.seen(*times, look=lambda status: (status.state, status.problem))
    stage.run(120.0)

    (early, late, after) = seen
    assert early == after == (WorkerState.RUNNING, "")
    assert late[0] is WorkerState.RUNNING
    assert late[1].startswith("the model has had 2 records for 6")
    assert "starting with offset 0 of in, partition 0" in late[1]
    assert stage.answered() == [0, 1]
