"""How far are the feature views of a home? As documents and as metrics. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from headrace.control.materialize_plan import ViewPast, next_run_at
from headrace.features import FeatureView, MaterializeProgress
from headrace.observe.metrics import Family, Labels, counter, gauge


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureViewStatus:
    """One feature view. `state`: `waiting`, `running`, `failing` or `unscheduled`.

    Times are in seconds since 1970. `newest_at`: the newest event time that scheduled runs brought,
    `age_s` old. `entities` and `written` are of the last run that worked, which took `duration_s`;
    `done` of `of` entities are written by one under way. `failures`: in a row, because of
    `message`.
    """

    name: str
    state: str
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
    age_s: float | None = None
    failures: int = 0
    message: str = ""
    done: int = 0
    of: int = 0


def view_status(
    view: FeatureView, past: ViewPast | None, progress: MaterializeProgress | None, *, now: float
) -> FeatureViewStatus:
    """How a view is; `progress` of a run under way, `past` of one that is scheduled."""
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
    """Metrics of scheduled views."""
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
