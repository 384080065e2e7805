"""What becomes of jobs and their runs, decided without a clock or a process."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.jobs.plan import (
    AFTER_FAILURE,
    MAX_INTERRUPTIONS,
    Attempt,
    after_attempt,
    arguments_of,
    begun,
    is_late,
    jobs_of,
    lateness_s,
    memory_limit_of,
    new_run,
    next_run_at,
    planned,
    takeable,
)
from headrace.control.model.job_runs import JobMark, JobRun, JobsSnapshot, RunState
from headrace.core.spec.jobs import JobSpec

DAY = 1_795_737_600.0  # 2026-11-27, midnight in UTC
SIX = DAY + 6 * 3600


def job(**changes: Any) -> JobSpec:  # noqa: ANN401  # any field
    plain = {
        "name": "j",
        "model": "m",
        "input": "/in/{date}/*.parquet",
        "output": "/out/{run_id}",
        "schedule": {"cron": "0 6 * * *"},
    }
    (found,) = jobs_of({"jobs": [plain | changes]}).values()
    return found


def look(mark: JobMark | None = None, *runs: JobRun, success: JobRun | None = None) -> JobsSnapshot:
    return JobsSnapshot(
        generation=1,
        marks={} if mark is None else {mark.job: mark},
        open=runs,
        succeeded={} if success is None else {success.job: success},
        ended={},
    )


def mark(handled: float, **changes: Any) -> JobMark:  # noqa: ANN401  # any field
    plain = JobMark(job="j", schedule="0 6 * * * UTC", since=handled, handled=handled, revision=3)
    return msgspec.structs.replace(plain, **changes)


def test_a_schedule_begins_when_it_is_seen_first_and_makes_up_for_nothing_before() -> None:
    found = planned(job(), look(), now=SIX + 30)

    assert found is not None
    assert (found.mark.handled, found.mark.since, found.runs) == (SIX + 30, SIX + 30, ())


def test_another_schedule_begins_anew() -> None:
    other = job(schedule={"cron": "0 5 * * *"})
    found = planned(other, look(mark(DAY)), now=SIX)

    assert found is not None
    assert found.runs == ()
    assert found.mark == mark(SIX, schedule="0 5 * * * UTC")


def test_a_moment_is_started_under_an_id_that_it_alone_has() -> None:
    found = planned(job(), look(mark(DAY)), now=SIX + 1)

    assert found is not None
    (run,) = found.runs
    assert run.id == "j-20261127T060000Z"
    assert (run.moment, run.state, run.output) == (SIX, RunState.WAITING, f"/out/{run.id}")
    assert found.mark.handled == SIX
    assert planned(job(), look(found.mark), now=SIX + 2) is None


def test_a_moment_at_which_the_run_before_goes_on_is_left_out_and_said() -> None:
    under_way = new_run(job(), SIX - 60, now=SIX)
    found = planned(job(), look(mark(DAY), under_way), now=SIX + 1)

    assert found is not None
    (run,) = found.runs
    assert (run.state, run.message) == (RunState.SKIPPED, "the previous run had not ended")
    assert found.skipped == 1


def test_years_of_standing_still_leave_few_rows() -> None:
    each_minute = job(schedule={"cron": "* * * * *", "catch_up": "none"})
    past = mark(DAY - 5 * 366 * 86_400, schedule="* * * * * UTC")
    found = planned(each_minute, look(past), now=DAY + 0.5)

    assert found is not None
    assert found.skipped == 999
    assert len(found.runs) == 21
    assert found.mark.handled == DAY


def test_a_job_without_a_schedule_is_never_due() -> None:
    assert planned(job(schedule=None), look(), now=SIX) is None
    assert next_run_at(job(schedule=None), now=SIX) is None
    assert next_run_at(job(), now=SIX) == SIX + 86_400


def test_the_command_line_says_all_that_the_job_does_and_nothing_else() -> None:
    full = job(
        columns={"x": ["f0..f3", "age"]},
        keys=["id", "who=customer"],
        max_errors=0,
        allow_code=True,
        rows_independent=True,
        input="-in/{date}",
        schedule={"cron": "0 6 * * *", "timezone": "Pacific/Auckland"},
    )
    run = new_run(full, DAY + 12 * 3600, now=0.0)
    found = arguments_of(run, Path("/h"))

    assert found[:2] == ["batch", "run"]
    assert set(found[2:]) == {
        "--model=m",
        "--input=-in/2026-11-28",
        f"--output=/out/{run.id}",
        "--keys=id,who=customer",
        "--format=parquet",
        "--errors=column",
        "--max-errors=0",
        "--nulls=nan",
        "--memory=512MiB",
        f"--run-id={run.id}",
        "--home=/h",
        "--map=x=f0..f3,age",
        "--allow-code",
        "--rows-independent",
    }


def test_failures_are_tried_again_later_each_time_and_then_no_more() -> None:
    run = msgspec.structs.replace(new_run(job(retries=2), SIX, now=SIX), state=RunState.RUNNING)
    bad = Attempt(message="no disk")
    delays = []
    for tries in (1, 2, 3):
        after = after_attempt(msgspec.structs.replace(run, tries=tries), bad, now=SIX)
        delays.append((after.state, after.next_try_at - SIX if after.next_try_at else None))

    first, second = AFTER_FAILURE.delay_s(1), AFTER_FAILURE.delay_s(2)
    assert delays == [
        (RunState.WAITING, first),
        (RunState.WAITING, second),
        (RunState.FAILED, None),
    ]
    assert first < second


@pytest.mark.parametrize(
    ("attempt", "cancelled_by", "state"),
    [
        (Attempt(ok=True), "", RunState.SUCCEEDED),
        (Attempt(ok=True), "ann", RunState.SUCCEEDED),
        (Attempt(interrupted=True), "", RunState.WAITING),
        (Attempt(interrupted=True), "ann", RunState.CANCELLED),
        (Attempt(final=True, message="too many errors"), "", RunState.FAILED),
    ],
)
def test_a_try_ends_as_it_did(attempt: Attempt, cancelled_by: str, state: RunState) -> None:
    run = msgspec.structs.replace(
        new_run(job(), SIX, now=SIX), state=RunState.RUNNING, tries=1, cancelled_by=cancelled_by
    )
    after = after_attempt(run, attempt, now=SIX + 5)

    assert after.state is state
    assert after.tries == (0 if state is RunState.WAITING else 1)
    assert (after.ended == SIX + 5) is state.is_over


def interrupted(run: JobRun, *, at: float = SIX, shards_done: int = 0) -> JobRun:
    """A run after a try that was ended from outside."""
    under_way = msgspec.structs.replace(begun(run, now=at), shards_done=shards_done)
    return after_attempt(under_way, Attempt(interrupted=True, message="stopped"), now=at)


def test_a_run_that_is_interrupted_again_and_again_and_gets_nowhere_fails() -> None:
    run = new_run(job(), SIX, now=SIX)
    states = []
    while not run.state.is_over:
        run = interrupted(run, at=run.next_try_at)
        states.append(run.state)

    assert states == [RunState.WAITING] * (MAX_INTERRUPTIONS - 1) + [RunState.FAILED]
    assert "was interrupted 10 times and finished no shard in between" in run.message
    assert "stopped" in run.message
    assert "`shard_rows`" in run.message
    assert run.tries == 0, "none of them was its own fault"


def test_a_shard_that_was_finished_lets_interruptions_count_anew() -> None:
    run = new_run(job(), SIX, now=SIX)
    for done in range(1, 5 * MAX_INTERRUPTIONS):
        run = interrupted(run, shards_done=done // (MAX_INTERRUPTIONS - 2))
    assert run.state is RunState.WAITING

    for _ in range(MAX_INTERRUPTIONS):
        run = interrupted(run, shards_done=run.shards_done)
        if run.state.is_over:
            break
    assert run.state is RunState.FAILED


def test_output_that_was_lost_moves_the_mark_of_progress_back() -> None:
    run = interrupted(new_run(job(), SIX, now=SIX), shards_done=7)
    back = interrupted(run, shards_done=2)
    on = interrupted(back, shards_done=3)

    assert (run.interruptions, back.interruptions, on.interruptions) == (1, 2, 1)


def test_the_first_interruption_costs_no_time_and_later_ones_more_and_more() -> None:
    run = new_run(job(), SIX, now=SIX)
    waits = []
    for _ in range(4):
        run = interrupted(run)
        waits.append(run.next_try_at - SIX)

    assert waits == [0.0, *(AFTER_FAILURE.delay_s(n) for n in (1, 2, 3))]


def test_a_run_whose_owner_is_gone_was_interrupted_though_nobody_noted_it() -> None:
    run = begun(new_run(job(), SIX, now=SIX), now=SIX)
    assert (run.state, run.tries, run.began, run.interruptions) == (RunState.RUNNING, 1, SIX, 0)
    for count in range(1, MAX_INTERRUPTIONS):
        run = begun(run, now=SIX + count)
        assert (run.state, run.tries, run.began) == (RunState.RUNNING, 1, SIX)
        assert run.interruptions == count

    over = begun(run, now=SIX + 99)

    assert (over.state, over.ended) == (RunState.FAILED, SIX + 99)
    assert "its control plane or its machine was lost" in over.message


def test_failures_do_not_wash_interruptions_away() -> None:
    run = interrupted(interrupted(new_run(job(), SIX, now=SIX)))
    failed = after_attempt(begun(run, now=SIX), Attempt(message="no disk"), now=SIX)

    assert interrupted(failed).interruptions == 3


def test_what_a_run_may_take_is_as_its_job_said() -> None:
    limited = new_run(job(memory_limit="1.5GB"), SIX, now=SIX)

    assert memory_limit_of(limited) == ("1.5GB", 1_500_000_000)
    assert memory_limit_of(new_run(job(), SIX, now=SIX)) == ("", 0)


def test_runs_are_taken_oldest_first_within_the_room_and_never_from_the_living() -> None:
    runs = [
        msgspec.structs.replace(new_run(job(), SIX + 60 * i, now=SIX), owner=owner, next_try_at=at)
        for i, (owner, at) in enumerate(
            [("living", 0.0), ("dead", 0.0), ("", SIX + 50), ("", 0.0), ("", 0.0)]
        )
    ]
    dead = frozenset({(runs[1].id, 0)})

    taken = takeable(reversed(runs), now=SIX, dead=dead, free_slots=2)

    assert taken == [runs[1], runs[3]]
    assert takeable(runs, now=SIX, dead=dead, free_slots=-1) == []


def test_a_clock_that_was_set_back_by_years_does_not_keep_a_run_waiting() -> None:
    run = msgspec.structs.replace(new_run(job(), SIX, now=SIX), next_try_at=SIX + 10)

    assert takeable([run], now=SIX - 1e8, dead=frozenset(), free_slots=1) == [run]


def test_late_is_what_no_run_has_succeeded_for() -> None:
    watched = job(schedule={"cron": "0 6 * * *", "late_after_s": 3600.0})
    good = msgspec.structs.replace(new_run(watched, SIX, now=SIX), state=RunState.SUCCEEDED)
    before, after = look(mark(DAY)), look(mark(DAY), success=good)

    assert lateness_s(watched, before, now=SIX - 1) == 0.0
    assert lateness_s(watched, before, now=SIX + 3601) == 3601.0
    assert not is_late(watched, before, now=SIX + 3600)
    assert is_late(watched, before, now=SIX + 3601)
    assert not is_late(watched, after, now=SIX + 86_400 + 3600)
    assert is_late(watched, after, now=SIX + 86_400 + 3601)
    assert not is_late(job(), before, now=SIX + 1e6)
    assert lateness_s(watched, look(), now=SIX) is None
