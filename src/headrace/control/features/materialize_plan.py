"""Plan and status of materialization of feature views. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim

from headrace.core.backoff import Backoff
from headrace.features import FeatureView, MaterializeSchedule
from headrace.features.materialize_process import MaterializeFinished, MaterializeProgress
from headrace.observe.metrics import Family, Labels, counter, gauge

AFTER_FAILURE: Final = Backoff(first_s=2.0, limit_s=600.0)
_US: Final = 1_000_000


class ViewPast(msgspec.Struct, frozen=True, kw_only=True):
    """Results of a view's runs. Times are in Unix time."""

    view: str
    of: str
    """Identity of the runs' source and schema."""
    began_at: float | None = None
    succeeded_at: float | None = None
    duration_s: float | None = None
    entities: int = 0
    written: int = 0
    newest_at: float | None = None
    failures: int = 0
    """Failures in a row, the last at `failed_at` because of `message`. `entities` and `written` are
    those of the last run; totals include all runs.
    """
    failed_at: float | None = None
    message: str = ""
    runs_total: int = 0
    written_total: int = 0
    failures_total: int = 0


def identity_of(view: FeatureView) -> str:
    """Return the identity of a view's source and schema; earlier runs count only for the same."""
    source = view.source
    columns = (str(source.path), source.timestamp_field, source.created_field)
    return " ".join([view.schema_hash.hex(), *columns])


def past_of(view: FeatureView, record: ViewPast | None) -> ViewPast:
    """Return the record of a view; only its totals if source or schema changed."""
    of = identity_of(view)
    if record is None:
        return ViewPast(view=view.name, of=of)
    if record.of == of:
        return record
    return ViewPast(
        view=view.name,
        of=of,
        runs_total=record.runs_total,
        written_total=record.written_total,
        failures_total=record.failures_total,
    )


def next_run_at(schedule: MaterializeSchedule, past: ViewPast) -> float:
    """Return the Unix time of the next run; it may be past, and is 0 before the first run.

    Missed times of `cron` are made up for by one run. A failed run is retried sooner than
    scheduled, with increasing delay.
    """
    if past.failures and past.failed_at is not None:
        return past.failed_at + AFTER_FAILURE.delay_s(past.failures)
    if past.began_at is None:
        return 0.0
    if schedule.every_s is not None:
        return past.began_at + schedule.every_s
    return _next_moment(schedule.cron, schedule.timezone, past.began_at)


def is_due(schedule: MaterializeSchedule, past: ViewPast, now: float) -> bool:
    """Whether a run is due; also if the clock was set back before the last one."""
    last = max(past.began_at or 0.0, past.failed_at or 0.0)
    return now >= next_run_at(schedule, past) or last > now


def succeeded(past: ViewPast, done: MaterializeFinished, *, started: float, now: float) -> ViewPast:
    """Return the record after a successful run."""
    newest_at = past.newest_at if done.newest_us is None else done.newest_us / _US
    return msgspec.structs.replace(
        past,
        began_at=started,
        succeeded_at=now,
        duration_s=max(now - started, 0.0),
        entities=done.entities,
        written=done.written,
        newest_at=newest_at,
        failures=0,
        failed_at=None,
        message="",
        runs_total=past.runs_total + 1,
        written_total=past.written_total + done.written,
    )


def failed(past: ViewPast, message: str, *, started: float, now: float) -> ViewPast:
    """Return the record after a failed run."""
    return msgspec.structs.replace(
        past,
        began_at=started,
        failures=past.failures + 1,
        failed_at=now,
        message=message,
        runs_total=past.runs_total + 1,
        failures_total=past.failures_total + 1,
    )


@lru_cache(maxsize=1024)
def _next_moment(cron: str, timezone: str, after: float) -> float:
    start = datetime.fromtimestamp(after, UTC).astimezone(ZoneInfo(timezone))
    return next(CronSim(cron, start)).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureViewStatus:
    """Status of one feature view.

    Times are in seconds since 1970.
    """

    name: str
    state: str
    """`waiting`, `running`, `failing` or `unscheduled`."""
    every_s: float | None = None
    cron: str = ""
    timezone: str = ""
    ttl_s: float | None = None
    next_run_at: float | None = None
    last_run_at: float | None = None
    last_success_at: float | None = None
    duration_s: float | None = None
    entities: int = 0
    written: int = 0
    newest_at: float | None = None
    """Newest event time that scheduled runs wrote, `age_s` old. `entities` and `written` are those
    of the last successful run, which took `duration_s`; a current run has written `done` of `of`
    entities.
    """
    age_s: float | None = None
    failures: int = 0
    """Failures in a row, because of `message`."""
    message: str = ""
    done: int = 0
    of: int = 0


def view_status(
    view: FeatureView, past: ViewPast | None, progress: MaterializeProgress | None, *, now: float
) -> FeatureViewStatus:
    """Return a view's status; `progress` is of its current run, `past` of its scheduled runs."""
    schedule = view.schedule
    if schedule is None or past is None:
        return FeatureViewStatus(name=view.name, state="unscheduled", ttl_s=view.ttl_s)
    state = "failing" if past.failures else "waiting"
    return FeatureViewStatus(
        name=view.name,
        state=state if progress is None else "running",
        every_s=schedule.every_s,
        cron=schedule.cron,
        timezone=schedule.timezone if schedule.cron else "",
        ttl_s=view.ttl_s,
        next_run_at=max(next_run_at(schedule, past), now) if progress is None else None,
        last_run_at=past.began_at,
        last_success_at=past.succeeded_at,
        duration_s=past.duration_s,
        entities=past.entities,
        written=past.written,
        newest_at=past.newest_at,
        age_s=None if past.newest_at is None else now - past.newest_at,
        failures=past.failures,
        message=past.message,
        done=0 if progress is None else progress.done,
        of=0 if progress is None else progress.entities,
    )


def view_families(pasts: Iterable[ViewPast], *, now: float) -> list[Family]:
    """Return the metrics of scheduled views."""
    views: list[tuple[Labels, ViewPast]] = [((("view", past.view),), past) for past in pasts]
    return [
        gauge(
            "headrace_feature_view_age_seconds",
            "Since the newest event time in the online store.",
            [(view, now - past.newest_at) for view, past in views if past.newest_at is not None],
        ),
        gauge(
            "headrace_feature_view_success_age_seconds",
            "Since the last run that worked.",
            [(view, now - p.succeeded_at) for view, p in views if p.succeeded_at is not None],
        ),
        counter(
            "headrace_feature_view_runs_total",
            "Scheduled materializations, failed ones included.",
            [(view, past.runs_total) for view, past in views],
        ),
        counter(
            "headrace_feature_view_failures_total",
            "Of them those that failed.",
            [(view, past.failures_total) for view, past in views],
        ),
        counter(
            "headrace_feature_view_rows_total",
            "Records that they wrote.",
            [(view, past.written_total) for view, past in views],
        ),
    ]
