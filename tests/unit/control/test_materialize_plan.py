"""When a view is materialized next follows from its schedule and from its last runs."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.features.materialize_plan import (
    AFTER_FAILURE,
    ViewPast,
    failed,
    identity_of,
    is_due,
    next_run_at,
    past_of,
    succeeded,
    view_families,
    view_status,
)
from headrace.features import DataSource, FeatureView, MaterializeSchedule
from headrace.features.materialize_process import MaterializeFinished, MaterializeProgress
from tests.metrics import exposed

T0 = datetime(2026, 11, 27, 6, 2, 30, tzinfo=UTC).timestamp()
EVERY = MaterializeSchedule(every_s=300.0)
CRON = MaterializeSchedule(cron="*/5 * * * *")
DONE = MaterializeFinished(entities=5, written=4, newest_us=int((T0 - 10) * 1e6))
VIEW = FeatureView(
    name="stats",
    entities=(),
    features=(),
    source=DataSource(path=Path("/a.parquet")),
    ttl_s=60.0,
    schedule=EVERY,
)
NEW = past_of(VIEW, None)


@pytest.mark.parametrize("schedule", [EVERY, CRON])
def test_what_never_ran_is_due_at_once(schedule: MaterializeSchedule) -> None:
    assert is_due(schedule, NEW, T0)


@pytest.mark.parametrize(("schedule", "after_s"), [(EVERY, 300.0), (CRON, 150.0)])
def test_the_next_run_is_due_by_the_schedule(schedule: MaterializeSchedule, after_s: float) -> None:
    past = succeeded(NEW, DONE, started=T0, now=T0 + 20)

    assert next_run_at(schedule, past) == T0 + after_s
    assert not is_due(schedule, past, T0 + after_s - 0.1)
    assert is_due(schedule, past, T0 + after_s)


def test_a_cron_line_is_read_in_its_time_zone() -> None:
    schedule = MaterializeSchedule(cron="0 8 * * *", timezone="Europe/Berlin")
    past = succeeded(NEW, DONE, started=T0, now=T0)

    assert next_run_at(schedule, past) == datetime(2026, 11, 27, 7, 0, tzinfo=UTC).timestamp()


def test_moments_that_passed_while_nothing_ran_are_made_up_for_once() -> None:
    past = succeeded(NEW, DONE, started=T0, now=T0)
    days = T0 + 3 * 86_400

    assert is_due(CRON, past, days)
    assert not is_due(CRON, succeeded(past, DONE, started=days, now=days), days + 1)


@given(st.integers(1, 2000))
def test_after_each_failure_it_waits_longer_up_to_a_limit(failures: int) -> None:
    past = ViewPast(view="v", of="", began_at=T0, failures=failures, failed_at=T0)
    more = ViewPast(view="v", of="", began_at=T0, failures=failures + 1, failed_at=T0)

    wait, longer = (next_run_at(EVERY, one) - T0 for one in (past, more))

    assert AFTER_FAILURE.first_s <= wait <= longer <= AFTER_FAILURE.limit_s


def test_a_clock_that_was_set_back_does_not_stop_runs() -> None:
    past = succeeded(NEW, DONE, started=T0 + 1e6, now=T0 + 1e6)

    assert is_due(EVERY, past, T0)


def test_success_ends_a_row_of_failures_and_keeps_totals() -> None:
    past = failed(failed(NEW, "no", started=T0, now=T0 + 1), "no", started=T0, now=T0 + 4)

    after = succeeded(past, DONE, started=T0 + 8, now=T0 + 9)

    assert (past.failures, past.failed_at, past.message) == (2, T0 + 4, "no")
    assert (after.failures, after.failed_at, after.message) == (0, None, "")
    assert (after.runs_total, after.failures_total, after.written_total) == (3, 2, 4)
    assert (after.newest_at, after.duration_s) == (T0 - 10, 1.0)


def test_a_run_without_rows_keeps_what_is_known_of_the_newest() -> None:
    past = succeeded(NEW, DONE, started=T0, now=T0)
    nothing = MaterializeFinished(entities=0, written=0, newest_us=None)

    assert succeeded(past, nothing, started=T0, now=T0).newest_at == T0 - 10


def test_another_source_begins_anew_and_keeps_totals() -> None:
    past = succeeded(NEW, DONE, started=T0, now=T0)
    moved = FeatureView(
        name="stats", entities=(), features=(), source=DataSource(path=Path("/b.parquet"))
    )

    assert past_of(VIEW, past) is past
    assert past_of(moved, past) == ViewPast(
        view="stats", of=identity_of(moved), runs_total=1, written_total=4
    )
    assert identity_of(moved) != identity_of(VIEW)


def test_a_status_says_how_far_a_view_is() -> None:
    past = succeeded(NEW, DONE, started=T0, now=T0 + 2)
    wrong = failed(past, "no file", started=T0 + 300, now=T0 + 301)
    progress = MaterializeProgress(done=3, entities=9)

    waiting = view_status(VIEW, past, None, now=T0 + 20)
    running = view_status(VIEW, past, progress, now=T0 + 20)
    failing = view_status(VIEW, wrong, None, now=T0 + 310)

    assert (waiting.state, waiting.next_run_at, waiting.age_s) == ("waiting", T0 + 300, 30.0)
    assert (running.state, running.done, running.of, running.next_run_at) == ("running", 3, 9, None)
    assert (failing.state, failing.failures, failing.message) == ("failing", 1, "no file")
    assert failing.next_run_at == T0 + 310


def test_a_view_without_a_schedule_is_listed() -> None:
    by_hand = FeatureView(name="v", entities=(), features=(), source=VIEW.source)

    assert view_status(by_hand, NEW, None, now=T0).state == "unscheduled"


def test_metrics_say_ages_and_totals() -> None:
    text = exposed(view_families([succeeded(NEW, DONE, started=T0, now=T0)], now=T0 + 20))

    assert 'headrace_feature_view_age_seconds{view="stats"} 30' in text
    assert 'headrace_feature_view_success_age_seconds{view="stats"} 20' in text
    assert 'headrace_feature_view_runs_total{view="stats"} 1' in text
    assert 'headrace_feature_view_failures_total{view="stats"} 0' in text
    assert 'headrace_feature_view_rows_total{view="stats"} 4' in text
    assert exposed(view_families([], now=T0)) == ""
