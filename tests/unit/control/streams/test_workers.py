"""What the end of a worker means, and what is told of it."""

import signal

import msgspec
import pytest

from headrace.control.model.observed import STABLE_AFTER_S
from headrace.control.streams.driver import WorkerRecord, member_of
from headrace.control.streams.plan import WorkerPhase
from headrace.control.streams.status import (
    WorkerView,
    lag_of,
    rates,
    state_of,
)
from headrace.control.streams.workers import (
    StreamWorker,
    note_answer,
    note_end,
    revision_of,
    worker_view,
)
from headrace.streaming.settings import (
    EXIT_CANNOT_LOAD,
    PartitionStatus,
    ScoringEndpoint,
    StreamStatus,
    WorkerSettings,
    WorkerState,
)


def worker(
    phase: WorkerPhase = WorkerPhase.READY, *, failures: int = 0, endpoint: bool = False
) -> StreamWorker:
    record = WorkerRecord(stream="pay", index=0, serial=1, revision="a", restarts=2)
    return StreamWorker(
        record=record,
        process=None,
        since=0.0,
        phase=phase,
        failures=failures,
        asks_endpoint=endpoint,
    )


def status(member: str = "pay-0", *, at: float = 0.0, answered: int = 0) -> StreamStatus:
    return StreamStatus(
        stream="pay",
        member=member,
        state=WorkerState.RUNNING,
        lag_measured_at=at,
        answered=answered,
    )


def partition(partition: int, records: int | None, seconds: float | None = 1.0) -> PartitionStatus:
    return PartitionStatus(topic="in", partition=partition, lag_records=records, lag_s=seconds)


def view(state: str = "running", message: str = "", *, outdated: bool = False) -> WorkerView:
    return WorkerView(member="pay-0", state=state, message=message, outdated=outdated)


def test_members_of_hosts_that_share_a_stream_have_different_names() -> None:
    assert member_of("pay", 0) == "pay-0"
    assert member_of("pay", 0, prefix="pod-a") == "pod-a-pay-0"
    assert member_of("pay", 0, prefix="pod-a") != member_of("pay", 0, prefix="pod-b")


def test_one_that_was_told_to_stop_starts_with_a_clean_record() -> None:
    ended = worker(WorkerPhase.STOPPING)

    assert not note_end(ended, 0, last_line="stopped", now=50.0)
    assert (ended.phase, ended.start_at, ended.message) == (WorkerPhase.ENDED, 0.0, "")
    assert not ended.is_dead_end


def test_one_that_crashed_starts_later_each_time() -> None:
    ended = worker()
    waits = []
    for _ in range(4):
        ended.phase = WorkerPhase.STARTING
        assert note_end(ended, -int(signal.SIGKILL), last_line="", now=100.0)
        waits.append(ended.start_at - 100.0)

    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert ended.message == "was ended by SIGKILL"
    assert not ended.is_dead_end


def test_one_that_ran_for_long_is_forgiven() -> None:
    ended = worker(failures=7)
    note_end(ended, 1, last_line="why", now=STABLE_AFTER_S)

    assert (ended.failures, ended.message) == (1, "why")


def test_a_model_that_cannot_be_loaded_is_tried_seldom_an_endpoint_soon() -> None:
    model, endpoint = worker(WorkerPhase.STARTING), worker(WorkerPhase.STARTING, endpoint=True)
    note_end(model, EXIT_CANNOT_LOAD, last_line="is no model", now=0.0)
    note_end(endpoint, EXIT_CANNOT_LOAD, last_line="is not ready", now=0.0)

    assert model.start_at > 10 * endpoint.start_at
    assert model.is_dead_end


def test_pausing_is_no_new_revision_and_everything_else_is() -> None:
    settings = WorkerSettings(
        name="pay",
        broker="log:x",
        topics=["in"],
        sink="out",
        group="pay",
        member="",
        endpoint=ScoringEndpoint(url="", name="fraud"),
    )
    paused = msgspec.structs.replace(settings, paused=True)
    other = msgspec.structs.replace(settings, max_batch_size=7)

    assert revision_of(settings) == revision_of(paused)
    assert revision_of(settings) != revision_of(other)


def test_a_worker_is_told_with_what_it_says_itself() -> None:
    one = worker()
    one.status = msgspec.structs.replace(
        status(answered=5),
        problem="the broker is away",
        partitions=[partition(0, 3), partition(1, 4)],
    )
    told = worker_view(one, "b", now=0.0)

    assert (told.member, told.state, told.restarts) == ("pay-0", "running", 2)
    assert (told.lag_records, told.partitions) == (7, ("in/0", "in/1"))
    assert (told.message, told.outdated) == ("the broker is away", True)


def test_a_silent_worker_is_starting_and_one_without_a_process_waits() -> None:
    assert worker_view(worker(), "a", now=0.0).state == "starting"
    assert worker_view(worker(WorkerPhase.STOPPING), "a", now=0.0).state == "stopping"
    assert worker_view(worker(WorkerPhase.ENDED), "a", now=0.0).state == "waiting"


def test_one_that_has_said_nothing_for_a_while_is_told_as_silent() -> None:
    one = worker()
    one.status = status()
    note_answer(one, answered=False, now=100.0, starts=False)
    note_answer(one, answered=False, now=105.0, starts=False)
    soon, late = worker_view(one, "a", now=105.0), worker_view(one, "a", now=112.0)
    note_answer(one, answered=True, now=113.0, starts=False)

    assert (soon.state, soon.message) == ("running", "")
    assert (late.state, late.message) == ("silent", "has not answered for 12 s")
    assert worker_view(one, "a", now=130.0).state == "running"


def test_one_whose_brokers_client_does_not_return_is_told_unless_it_reconnects() -> None:
    one = worker()
    one.status = msgspec.structs.replace(status(), still_s=45.0)
    told = worker_view(one, "a", now=0.0)
    one.status = msgspec.structs.replace(one.status, state=WorkerState.RECONNECTING, problem="away")
    away = worker_view(one, "a", now=0.0)

    assert (told.state, told.message) == ("silent", "has waited for its broker's client for 45 s")
    assert (away.state, away.message) == ("reconnecting", "away")


def test_silence_while_nobody_asked_counts_for_nothing() -> None:
    one = worker()
    note_answer(one, answered=False, now=100.0, starts=False)
    note_answer(one, answered=False, now=500.0, starts=True)

    assert one.silent_since == 500.0


def test_one_that_was_ended_for_its_silence_says_so_and_starts_again_soon() -> None:
    one = worker()
    one.silent_since, one.killed_for = 40.0, "gave no response for 60 s, and was stopped"

    assert note_end(one, -int(signal.SIGKILL), last_line="joined", now=100.0)
    assert one.message == "gave no response for 60 s, and was stopped"
    assert one.start_at == pytest.approx(100.1)
    assert not one.observed().kill_sent
    assert one.observed().silent_since is None


def test_lag_is_of_all_places_and_the_oldest_record() -> None:
    first = msgspec.structs.replace(status(), partitions=[partition(0, 3, 1.5)])
    second = msgspec.structs.replace(
        status(), partitions=[partition(1, 4, 0.5), partition(2, None, None)]
    )
    lag = lag_of([first, second])

    assert (lag.records, lag.seconds, lag.partitions) == (7, 1.5, 3)


def test_a_place_that_members_share_counts_once_and_bounds_nothing() -> None:
    both = msgspec.structs.replace(status(), partitions=[partition(0, 3)])
    lag = lag_of([both, both])

    assert (lag.records, lag.partitions) == (3, None)


def test_without_a_word_the_lag_is_not_known() -> None:
    lag = lag_of([status()])

    assert (lag.records, lag.seconds, lag.partitions) == (None, None, None)


def test_a_rate_is_between_two_looks_and_a_new_process_begins_at_zero() -> None:
    before = {"a": status("a", at=10.0, answered=100), "b": status("b", at=10.0, answered=900)}
    now = {
        "a": status("a", at=12.0, answered=300),
        "b": status("b", at=12.0, answered=5),
        "c": status("c", at=12.0, answered=5),
    }

    assert rates(before, now) == {"a": 100.0, "b": 0.0, "c": 0.0}


@pytest.mark.parametrize(
    ("members", "paused", "state"),
    [
        ([view(), view()], False, "running"),
        ([view(), view("starting")], False, "starting"),
        ([view(), view("retrying")], False, "retrying"),
        ([view(), view(outdated=True)], False, "starting"),
        ([view(), view("waiting", "was ended by SIGKILL")], False, "degraded"),
        ([view("waiting", "no"), view("waiting", "no")], False, "failed"),
        ([view(), view("silent", "has not answered")], False, "degraded"),
        ([view("paused"), view("paused")], True, "paused"),
        ([view("paused"), view("waiting", "no")], True, "degraded"),
    ],
)
def test_the_state_of_a_stream_is_one_word(
    members: list[WorkerView],
    paused: bool,  # noqa: FBT001  # a column of the table
    state: str,
) -> None:
    assert state_of(members, count=2, paused=paused) == state
