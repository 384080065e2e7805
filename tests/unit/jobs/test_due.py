"""When scheduled jobs run: beside croniter, when clocks change, and after standing still."""

import itertools
import math
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter  # type: ignore[import-untyped]  # ships no types
from hypothesis import assume, example, given
from hypothesis import strategies as st

from headrace.core.cron import runs_once_a_day
from headrace.core.spec.jobs import JobScheduleSpec
from headrace.jobs.due import (
    DueRuns,
    due,
    moments,
    next_moment,
)

CATCH_UPS: list[Literal["none", "last", "all"]] = ["none", "last", "all"]
OVERLAPS: list[Literal["skip", "wait", "allow"]] = ["skip", "wait", "allow"]
HOUR_S, DAY_S = 3_600.0, 86_400.0
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")

times = st.floats(
    min_value=datetime(2024, 1, 1, tzinfo=UTC).timestamp(),
    max_value=datetime(2032, 1, 1, tzinfo=UTC).timestamp(),
)
fields = st.tuples(
    st.sampled_from(["*", "*/7", "0", "30", "5,35", "10-40/10"]),
    st.sampled_from(["*", "*/5", "2", "0", "1-3", "9,17"]),
    st.sampled_from(["*", "1", "29", "1-7", "*/10"]),
    st.sampled_from(["*", "2", "3,10", "*/2"]),
    st.sampled_from(["*", "0", "7", "mon", "1-5", "sun-tue"]),
)


def at(*parts: int, zone: str = "UTC", fold: int = 0) -> float:
    year, month, day, hour = (*parts, 0)[:4]
    return datetime(year, month, day, hour, tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def shown(schedule: JobScheduleSpec, after: float, count: int) -> list[str]:
    zone = ZoneInfo(schedule.timezone)
    found = itertools.islice(moments(schedule, after), count)
    return [datetime.fromtimestamp(moment, zone).strftime("%m-%d %H:%M%z") for moment in found]


@given(line=fields, after=times, zone=st.sampled_from(ZONES))
@example(line=("0", "0", "29", "2", "*"), after=at(2027, 1, 1), zone="UTC")
def test_moments_are_croniters_but_for_the_hour_that_comes_twice(
    line: tuple[str, ...], after: float, zone: str
) -> None:
    # To cron a day of "*/10" is any day, so that the day of the week counts too; to croniter not.
    assume(not (line[2] == "*/10" and line[4] != "*"))
    schedule = JobScheduleSpec(cron=" ".join(line), timezone=zone)
    ours = list(itertools.islice(moments(schedule, after), 5))
    start = datetime.fromtimestamp(after, ZoneInfo(zone))
    theirs: list[float] = []
    for moment in croniter(schedule.cron, start).all_next(datetime):
        theirs.append(moment.timestamp())
        if len(theirs) == 5:
            break
    assume(not any(_near_a_change(moment, zone) for moment in (after, *theirs, *ours)))
    assert ours == theirs


def _near_a_change(moment: float, zone: str) -> bool:
    around = [
        datetime.fromtimestamp(moment + hours * HOUR_S, ZoneInfo(zone)).utcoffset()
        for hours in (-26, 0, 26)
    ]
    return len(set(around)) > 1


@given(line=fields, after=times, zone=st.sampled_from(ZONES))
def test_moments_ascend_and_none_is_told_twice(
    line: tuple[str, ...], after: float, zone: str
) -> None:
    found = list(
        itertools.islice(moments(JobScheduleSpec(cron=" ".join(line), timezone=zone), after), 8)
    )
    assert all(a < b for a, b in itertools.pairwise([after, *found]))


@given(line=fields, after=times, zone=st.sampled_from(ZONES), cut=st.integers(1, 7))
def test_it_is_the_same_wherever_one_begins_to_look(
    line: tuple[str, ...], after: float, zone: str, cut: int
) -> None:
    schedule = JobScheduleSpec(cron=" ".join(line), timezone=zone)
    found = list(itertools.islice(moments(schedule, after), 8))
    assume(len(found) == 8)
    assert list(itertools.islice(moments(schedule, found[cut - 1]), 8 - cut)) == found[cut:]


def test_a_line_that_names_hours_runs_once_when_the_clocks_go_back() -> None:
    daily = JobScheduleSpec(cron="30 2 * * *", timezone="Europe/Berlin")
    assert shown(daily, at(2026, 10, 24, 12), 2) == ["10-25 02:30+0200", "10-26 02:30+0100"]


def test_a_line_of_every_hour_runs_in_each_that_passes() -> None:
    hourly = JobScheduleSpec(cron="0 * * * *", timezone="Europe/Berlin")
    found = shown(hourly, at(2026, 10, 24, 23, 30), 3)
    assert found == ["10-25 02:00+0200", "10-25 02:00+0100", "10-25 03:00+0100"]


def test_what_falls_into_the_hour_that_is_left_out_runs_right_after() -> None:
    daily = JobScheduleSpec(cron="30 2 * * *", timezone="Europe/Berlin")
    assert shown(daily, at(2026, 3, 28, 12), 2) == ["03-29 03:00+0200", "03-30 02:30+0200"]


def test_a_line_with_a_star_runs_at_both_passes_of_the_hour_that_comes_twice() -> None:
    line = JobScheduleSpec(cron="*/30 2 * * *", timezone="Europe/Berlin")
    passes = ["10-25 02:00+0200", "10-25 02:30+0200", "10-25 02:00+0100", "10-25 02:30+0100"]
    assert shown(line, at(2026, 10, 24, 12), 5) == [*passes, "10-26 02:00+0100"]


MINUTES = {
    "*": range(60),
    "*/30": (0, 30),
    "0": (0,),
    "5,35": (5, 35),
    "0-59/20": (0, 20, 40),
}
CHANGES = [
    ("Europe/Berlin", 3, 29),
    ("Europe/Berlin", 10, 25),
    ("America/New_York", 3, 8),
    ("America/New_York", 11, 1),
]
"""Days of 2026 on which the clocks of a zone change by an hour. (cronsim jumps by whole hours: it
leaves out `0 */2 * * *` after Lord Howe's half an hour.)"""
HOURS = {"*": range(24), "*/2": range(0, 24, 2), "2": (2,), "1-3": (1, 2, 3), "0,2,4": (0, 2, 4)}


@given(
    minute=st.sampled_from(sorted(MINUTES)),
    hour=st.sampled_from(sorted(HOURS)),
    change=st.sampled_from(CHANGES),
)
def test_where_clocks_change_a_star_is_every_time_shown_and_a_number_runs_once(
    minute: str, hour: str, change: tuple[str, int, int]
) -> None:
    zone, month, day = change
    begin = at(2026, month, day) - DAY_S
    end = begin + 3 * DAY_S
    local = ZoneInfo(zone)
    clock = [
        (instant, datetime.fromtimestamp(instant, local).replace(tzinfo=None, fold=0))
        for instant in range(int(begin) + 60, int(end), 60)
    ]
    expected: set[float] = set()
    shown_before: set[datetime] = set()
    is_fixed = "*" not in minute[0] + hour[0]
    before = clock[0][1] - timedelta(minutes=1)
    for instant, wall in clock:
        left_out = (wall - before) // timedelta(minutes=1)
        due_walls = {
            time
            for time in (wall - timedelta(minutes=i) for i in range(max(left_out, 1)))
            if time.minute in MINUTES[minute] and time.hour in HOURS[hour]
        }
        if is_fixed:
            if due_walls - shown_before:
                expected.add(instant)
            shown_before |= due_walls
        elif wall in due_walls:
            expected.add(instant)
        before = wall
    schedule = JobScheduleSpec(cron=f"{minute} {hour} * * *", timezone=zone)
    found = set(itertools.takewhile(lambda moment: moment < end, moments(schedule, begin)))
    assert found == expected


@given(
    minute=st.sampled_from([*MINUTES, "*/60", "30"]),
    hour=st.sampled_from([*HOURS, "*/24", "1"]),
    zone=st.sampled_from(ZONES),
)
def test_what_runs_once_a_day_has_no_two_moments_on_one_day(
    minute: str, hour: str, zone: str
) -> None:
    cron = f"{minute} {hour} * * *"
    found = itertools.takewhile(
        lambda moment: moment < at(2027, 1, 1),
        moments(JobScheduleSpec(cron=cron, timezone=zone), at(2026, 1, 1)),
    )
    days = (datetime.fromtimestamp(moment, ZoneInfo(zone)).date() for moment in found)
    has_two = any(day == other for day, other in itertools.pairwise(days))
    if runs_once_a_day(cron):
        assert not has_two
    elif "/60" not in minute and "/24" not in hour:
        assert has_two


def test_the_leap_day_comes_every_fourth_year() -> None:
    rare = JobScheduleSpec(cron="0 0 29 2 *")
    assert next_moment(rare, at(2026, 1, 1)) == at(2028, 2, 29)
    assert next_moment(rare, at(2028, 2, 29)) == at(2032, 2, 29)


def test_monday_is_1_and_7_is_sunday() -> None:
    found = next_moment(JobScheduleSpec(cron="0 0 * * 1"), at(2026, 11, 27))
    assert found is not None
    assert datetime.fromtimestamp(found, UTC).weekday() == 0
    assert next_moment(JobScheduleSpec(cron="0 0 * * 7"), 0.0) == next_moment(
        JobScheduleSpec(cron="0 0 * * 0"), 0.0
    )


# What becomes of moments that pass.


def hourly(**changes: object) -> JobScheduleSpec:
    return JobScheduleSpec(cron="0 * * * *", **changes)  # type: ignore[arg-type]  # of any setting


MIDNIGHT = at(2026, 11, 27)


def test_a_moment_that_comes_is_started_once() -> None:
    found = due(hourly(), handled=MIDNIGHT, now=MIDNIGHT + HOUR_S + 0.4, running=0)
    assert found == DueRuns(starts=(MIDNIGHT + HOUR_S,))
    after = found.handled_to
    assert after == MIDNIGHT + HOUR_S
    assert due(hourly(), handled=after, now=MIDNIGHT + HOUR_S + 1.4, running=0) == DueRuns()


def test_after_hours_of_standing_still_the_newest_moment_is_made_up_for() -> None:
    found = due(hourly(), handled=MIDNIGHT, now=MIDNIGHT + 5.5 * HOUR_S, running=0)
    assert found.starts == (MIDNIGHT + 5 * HOUR_S,)
    assert [one.due_at for one in found.skipped] == [MIDNIGHT + i * HOUR_S for i in (1, 2, 3, 4)]
    assert {one.why for one in found.skipped} == {"a later moment replaced it"}


def test_or_each_of_them_one_after_the_other() -> None:
    schedule = hourly(catch_up="all")
    handled = MIDNIGHT
    started: list[float] = []
    for _ in range(5):
        found = due(schedule, handled=handled, now=MIDNIGHT + 3.5 * HOUR_S, running=0)
        started += found.starts
        handled = found.handled_to or handled
    assert started == [MIDNIGHT + i * HOUR_S for i in (1, 2, 3)]


def test_or_none() -> None:
    found = due(hourly(catch_up="none"), handled=MIDNIGHT, now=MIDNIGHT + 3.5 * HOUR_S, running=0)
    assert found.starts == ()
    assert {one.why for one in found.skipped} == {"the scheduler was not running then"}
    assert found.handled_to == MIDNIGHT + 3 * HOUR_S


def test_what_is_too_old_is_left_out() -> None:
    schedule = hourly(catch_up="all", catch_up_within_s=2 * HOUR_S)
    found = due(schedule, handled=MIDNIGHT, now=MIDNIGHT + 5.5 * HOUR_S, running=0)
    assert found.starts == (MIDNIGHT + 4 * HOUR_S,)
    assert found.waits == (MIDNIGHT + 5 * HOUR_S,)
    assert [one.due_at for one in found.skipped] == [MIDNIGHT + i * HOUR_S for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("overlap", "starts", "skips", "waits"),
    [
        ("skip", 0, 1, 0),
        ("wait", 0, 0, 1),
        ("allow", 1, 0, 0),
    ],
)
def test_a_moment_while_the_run_before_has_not_ended(
    overlap: Literal["skip", "wait", "allow"], starts: int, skips: int, waits: int
) -> None:
    found = due(hourly(overlap=overlap), handled=MIDNIGHT, now=MIDNIGHT + HOUR_S + 1.0, running=1)
    assert (len(found.starts), len(found.skipped), len(found.waits)) == (starts, skips, waits)


def test_of_moments_that_wait_the_newest_runs() -> None:
    schedule = hourly(overlap="wait")
    found = due(schedule, handled=MIDNIGHT, now=MIDNIGHT + 3.2 * HOUR_S, running=1)
    assert found.waits == (MIDNIGHT + 3 * HOUR_S,)
    handled = found.handled_to or MIDNIGHT
    after = due(schedule, handled=handled, now=MIDNIGHT + 3.3 * HOUR_S, running=0)
    assert after.starts == (MIDNIGHT + 3 * HOUR_S,)


def test_years_of_standing_still_are_not_gone_through_minute_by_minute() -> None:
    schedule = JobScheduleSpec(cron="* * * * *", catch_up="all", catch_up_within_s=HOUR_S)
    found = due(schedule, handled=at(1990, 1, 1), now=MIDNIGHT, running=0)
    assert 58 <= len(found.starts) + len(found.waits) <= 61


@given(
    line=fields,
    begin=times,
    steps=st.lists(st.tuples(st.floats(0.5, 40 * HOUR_S), st.integers(0, 1)), max_size=12),
    catch_up=st.sampled_from(CATCH_UPS),
    overlap=st.sampled_from(OVERLAPS),
)
def test_no_moment_is_started_twice_and_each_is_started_or_left_out_or_waits(
    line: tuple[str, ...],
    begin: float,
    steps: list[tuple[float, int]],
    catch_up: Literal["none", "last", "all"],
    overlap: Literal["skip", "wait", "allow"],
) -> None:
    schedule = JobScheduleSpec(
        cron=" ".join(line), catch_up=catch_up, overlap=overlap, catch_up_within_s=2 * DAY_S
    )
    now = handled = begin
    started: list[float] = []
    left_out: set[float] = set()
    waits: tuple[float, ...] = ()
    for pause, running in steps:
        now += pause
        found = due(schedule, handled=handled, now=now, running=running)
        started += found.starts
        left_out |= {one.due_at for one in found.skipped}
        waits = found.waits
        handled = max(handled, found.handled_to or -math.inf)
    assert len(started) == len(set(started))
    assert started == sorted(started)
    assert not set(started) & left_out
    told = {*started, *left_out, *waits}
    recent = itertools.takewhile(lambda m: m <= now, moments(schedule, max(begin, now - DAY_S)))
    missing = [moment for moment in recent if moment not in told]
    assert missing == [] or len(told) >= 1_000


def test_a_zone_is_one_by_name() -> None:
    berlin = JobScheduleSpec(cron="0 6 * * *", timezone="Europe/Berlin")
    first = next_moment(berlin, at(2026, 7, 1))
    assert first == at(2026, 7, 1, 6, zone="Europe/Berlin")
    assert first == at(2026, 7, 1) + timedelta(hours=4).total_seconds()
