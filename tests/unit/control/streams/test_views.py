"""What people and alerts are told of a stream's workers."""

import math

import msgspec
import pytest

from headrace.autoscale.stream import StreamScaleState
from headrace.control.model.desired import DesiredStream
from headrace.control.model.observed import MANY_FAILURES, STABLE_AFTER_S
from headrace.control.streams.plan import WorkerPhase
from headrace.control.streams.reports import (
    event_of,
    expired_before,
    expired_event,
    facts_of,
    track_team,
    view_of,
)
from headrace.control.streams.status import STALLED_AFTER_S, StreamView, families
from headrace.control.streams.workers import StreamWorker, Team, note_end, note_status
from headrace.monitor.slo import (
    Fact,
    StreamPromise,
    read_stream,
)
from headrace.streaming.settings import (
    EXIT_CANNOT_LOAD,
    EXIT_STOPPED_BY_RECORD,
    PartitionStatus,
    ScoringEndpoint,
    StreamStatus,
    WorkerSettings,
    WorkerState,
)
from tests.metrics import exposed
from tests.unit.control.streams.test_workers import worker

NOW = 1_764_000_000.0
SETTINGS = WorkerSettings(
    name="pay",
    member="pay-0",
    broker="log:demo",
    topics=["in"],
    sink="out",
    group="pay",
    endpoint=ScoringEndpoint(url="http://127.0.0.1:8000", name="fraud"),
)
PROMISE = StreamPromise(stream="pay", lag_s=None, dead_letters=None)
WANTED = DesiredStream(name="pay", model="fraud:1", settings=SETTINGS)


def said(state: WorkerState = WorkerState.RUNNING, dead_letters: int = 0) -> StreamStatus:
    partitions = [PartitionStatus(topic="in", partition=0, lag_records=12, lag_s=3.0)]
    return StreamStatus(
        stream="pay", member="pay-0", state=state, partitions=partitions, dead_letters=dead_letters
    )


def team(one: StreamWorker) -> Team:
    return Team(scale=StreamScaleState(workers=1), workers={0: one})


def view(one: StreamWorker, *, paused: bool = False) -> StreamView:
    return view_of(WANTED, team(one), revision="a", paused=paused, now=1.0)


def test_a_worker_that_takes_records_makes_its_stream_well() -> None:
    one = worker()
    note_status(one, said(), rate=5.0, now=1.0)
    told = view(one)

    assert (told.state, told.running, told.failing, told.stuck) == ("running", 1, 0, False)
    assert told.is_well
    assert told.problem == ""


def test_a_worker_that_waits_for_its_broker_takes_none() -> None:
    one = worker()
    note_status(one, said(WorkerState.RECONNECTING), rate=0.0, now=1.0)
    told = view(one)

    assert (told.running, told.is_well) == (0, False)
    assert told.problem == "retrying, 1 of 1 workers ready"


def test_a_worker_that_starts_is_a_member_as_soon_as_it_says_so() -> None:
    one = worker(WorkerPhase.STARTING)

    assert not note_status(one, said(WorkerState.STARTING), rate=0.0, now=1.0)
    assert note_status(one, said(), rate=0.0, now=2.0)
    assert not note_status(one, said(), rate=0.0, now=3.0)
    assert (one.phase, one.since) == (WorkerPhase.READY, 2.0)


def test_a_worker_that_runs_for_long_is_no_longer_failing() -> None:
    one = worker(failures=MANY_FAILURES)
    note_status(one, said(), rate=0.0, now=STABLE_AFTER_S - 1)
    before = view(one).failing
    note_status(one, said(), rate=0.0, now=STABLE_AFTER_S)

    assert (before, view(one).failing) == (1, 0)


@pytest.mark.parametrize(
    ("code", "endpoint", "stuck"),
    [
        (EXIT_CANNOT_LOAD, False, True),
        (EXIT_CANNOT_LOAD, True, False),  # an endpoint that is applied with it is soon there
        (EXIT_STOPPED_BY_RECORD, False, True),
        (1, False, False),
    ],
)
def test_a_stream_is_stuck_if_waiting_will_hardly_help(
    code: int, *, endpoint: bool, stuck: bool
) -> None:
    one = worker(endpoint=endpoint)
    note_end(one, code, last_line="why", now=0.0)
    told = view(one)

    assert (told.state, told.stuck) == ("failed", stuck)
    assert told.problem == "failed, 0 of 1 workers ready: why"


def test_a_worker_that_crashes_often_is_stuck_unless_it_waits_for_an_endpoint() -> None:
    crashing, waiting = worker(), worker(endpoint=True)
    for _ in range(MANY_FAILURES):
        for one, code in ((crashing, 1), (waiting, EXIT_CANNOT_LOAD)):
            one.phase = WorkerPhase.STARTING
            note_end(one, code, last_line="why", now=0.0)

    assert (view(crashing).stuck, view(crashing).failing) == (True, 1)
    assert (view(waiting).stuck, view(waiting).failing) == (False, 1)


def test_a_stream_none_of_whose_workers_has_a_partition_is_stalled_and_alerts_hear_of_it() -> None:
    idle, busy = worker(), worker()
    nothing = msgspec.structs.replace(said(), partitions=[], unassigned_s=STALLED_AFTER_S)
    note_status(idle, nothing, rate=0.0, now=1.0)
    note_status(busy, said(), rate=0.0, now=1.0)
    told = view(idle)
    both = Team(scale=StreamScaleState(workers=2), workers={0: idle, 1: busy})
    with_a_spare = view_of(WANTED, both, revision="a", paused=False, now=1.0)
    track_team(team(idle), now=NOW)
    down = read_stream(Fact.STREAM_DOWN, PROMISE, facts_of(told, team(idle).track, now=NOW))

    assert (told.state, told.running, told.is_well) == ("stalled", 0, False)
    assert "other members of group 'pay'" in told.problem
    assert 'headrace_stream_workers_running{stream="pay"} 0' in exposed(families([told]))
    assert down is not None
    assert down.is_bad
    assert event_of(told, before="running", timestamp=NOW).reason == "StreamStalled"
    assert (with_a_spare.state, with_a_spare.running) == ("running", 1)


def test_a_stream_whose_topic_does_not_exist_is_stalled_and_says_which() -> None:
    one = worker()
    lost = msgspec.structs.replace(
        said(WorkerState.RECONNECTING),
        partitions=[],
        unassigned_s=STALLED_AFTER_S,
        problem="there is no topic 'in'",
        lacks_topic=True,
    )
    note_status(one, lost, rate=0.0, now=1.0)
    stalled = view(one)
    note_status(one, msgspec.structs.replace(lost, lacks_topic=False), rate=0.0, now=1.0)
    broker_away = view(one)

    assert stalled.state == "stalled"
    assert "there is no topic 'in'" in stalled.problem
    assert "other members" not in stalled.problem
    assert broker_away.state == "retrying"


@pytest.mark.parametrize("kind", ["row_problem", "lag_problem"])
def test_what_does_not_stop_a_stream_is_a_warning(kind: str) -> None:
    one = worker()
    note_status(one, said(), rate=5.0, now=1.0)
    before = view(one)
    problem = "model fraud: output 'y' differs"
    note_status(one, msgspec.structs.replace(said(), **{kind: problem}), rate=5.0, now=2.0)
    told = view(one)

    assert before.warning == ""
    assert (told.state, told.warning) == ("running", problem)


def test_a_rebalance_does_not_stall_a_stream() -> None:
    one = worker()
    nothing = msgspec.structs.replace(said(), partitions=[], unassigned_s=STALLED_AFTER_S - 1)
    note_status(one, nothing, rate=0.0, now=1.0)

    assert (view(one).state, view(one).running) == ("running", 1)
    assert view(one, paused=True).state == "paused"


def test_alerts_know_what_the_view_does_and_the_letters_of_minutes() -> None:
    one = worker()
    both = team(one)
    for at, letters in ((0.0, 5), (10.0, 8)):
        note_status(one, said(dead_letters=letters), rate=0.0, now=1.0)
        track_team(both, now=NOW + at)
    facts = facts_of(view(one), both.track, now=NOW + 10)

    assert (facts.lag_s, facts.running, facts.failing) == (3.0, 1, 0)
    assert (facts.dead_letters, facts.paused) == (3, False)


def test_a_paused_stream_is_told_as_paused_and_not_as_running() -> None:
    one = worker()
    note_status(one, said(WorkerState.PAUSED), rate=0.0, now=1.0)
    told = view(one, paused=True)
    text = exposed(families([told]))

    assert (told.state, told.running, told.paused) == ("paused", 0, True)
    assert 'headrace_stream_paused{stream="pay"} 1' in text
    assert 'headrace_stream_workers_running{stream="pay"} 0' in text
    assert 'headrace_stream_workers_failing{stream="pay"} 0' in text
    assert 'headrace_stream_up{stream="pay"} 1' in text


def test_a_worker_that_stopped_before_a_record_is_not_called_crashing() -> None:
    one = worker()
    note_end(one, EXIT_STOPPED_BY_RECORD, last_line="in/0 at 7", now=0.0)

    assert one.start_at == math.inf
    assert (view(one).failing, view(one).stuck) == (0, True)


def test_records_that_retention_deleted_are_an_event_once_and_not_of_an_adopted_worker() -> None:
    fresh, adopted, known = worker(WorkerPhase.STARTING), worker(), worker()
    known.status = msgspec.structs.replace(said(), expired=300)
    event = expired_event(known, 7, timestamp=NOW)

    assert [expired_before(w) for w in (fresh, adopted, known)] == [0, math.inf, 300]
    assert event.reason == "StreamRecordsExpired"
    assert event.message == (
        "stream 'pay': worker pay-0 found that retention had deleted 7 records before they were "
        "read"
    )


def test_a_worker_that_hung_is_counted() -> None:
    team = Team(scale=StreamScaleState(workers=1), workers={0: worker()}, stalls=2)
    view = view_of(WANTED, team, revision="a", paused=False, now=0.0)

    assert 'headrace_stream_worker_stalls_total{stream="pay"} 2' in exposed(families([view]))
