"""What is told of a stream: to people, programs, and in events."""

from collections.abc import Sequence
from typing import Final

from headrace.control.desired import DesiredStream
from headrace.control.state.records import Event
from headrace.control.streams.plan import Phase
from headrace.control.streams.scaling import count_of
from headrace.control.streams.status import StreamView, is_stalled, lag_of, state_of
from headrace.control.streams.track import StreamTrack
from headrace.control.streams.workers import Team, Worker, worker_view
from headrace.monitor.slo import LETTERS_WINDOW_S, StreamFacts
from headrace.streaming.settings import State, StreamStatus


def view_of(
    wanted: DesiredStream, team: Team, *, revision: str, paused: bool, now: float
) -> StreamView:
    """How a stream is at `now`, in monotonic time; `revision`: what its workers should run."""
    members = tuple(
        worker_view(worker, revision, now=now) for _, worker in sorted(team.workers.items())
    )
    statuses = team.statuses()
    lag, count = lag_of(statuses), count_of(wanted, team)
    state = state_of(members, wanted=count, paused=paused) if members else "starting"
    message = next((member.message for member in members if member.message), team.start_error)
    if state in {"running", "retrying"} and all(map(is_stalled, statuses)):
        state = "stalled"
        unassigned_s = min(status.unassigned_s for status in statuses)
        why = message if any(status.lacks_topic for status in statuses) else ""
        message = (
            f"no worker has had a partition of {', '.join(wanted.settings.topics)} for "
            f"{unassigned_s:.0f} s: "
        ) + (
            why
            or f"other members of group '{wanted.settings.group}' have all of them, or there are "
            "none"
        )
    return StreamView(
        name=wanted.name,
        state=state,
        model=wanted.model,
        topics=tuple(wanted.settings.topics),
        sink=wanted.settings.sink,
        group=wanted.settings.group,
        ready=sum(worker.phase is Phase.READY for worker in team.workers.values()),
        workers=count,
        min_workers=wanted.min_workers,
        max_workers=wanted.max_workers,
        lag_records=lag.records,
        lag_s=lag.seconds,
        rate=sum(worker.rate for worker in team.workers.values()),
        answered=sum(status.answered for status in statuses),
        dead_letters=sum(status.dead_letters for status in statuses),
        retries=sum(status.retries for status in statuses),
        restarts=team.restarts,
        message=message,
        scaling=team.scaling,
        members=members,
        running=_running(statuses),
        failing=sum(worker.is_failing for worker in team.workers.values()),
        paused=paused,
        stuck=any(worker.is_stuck for worker in team.workers.values()),
        warning=next((status.row_problem for status in statuses if status.row_problem), ""),
    )


def track_team(team: Team, *, now: float) -> None:
    """Remember what the workers of a stream said last.

    Args:
        now: Unix time.
    """
    statuses = team.statuses()
    team.track.note(statuses, lag_of(statuses), running=_running(statuses), now=now)


def facts_of(view: StreamView, track: StreamTrack, *, now: float) -> StreamFacts:
    """What alerts have to know of a stream.

    Args:
        now: Unix time.
    """
    return StreamFacts(
        lag_s=view.lag_s,
        dead_letters=track.dead_letters_within(LETTERS_WINDOW_S, now=now),
        running=view.running,
        failing=view.failing,
        paused=view.paused,
    )


def _running(statuses: Sequence[StreamStatus]) -> int:
    """How many of them take records; one without a partition may be in reserve, and takes none."""
    return sum(status.state is State.RUNNING and not is_stalled(status) for status in statuses)


def event_of(view: StreamView, *, before: str, at: float) -> Event:
    """That a stream is in another state now.

    Args:
        before: The state that was told last; empty for none.
        at: Unix time.
    """
    reason, text = _TOLD[view.state]
    message = f"stream '{view.name}' {text}"
    if view.message and view.state not in {"running", "paused"}:
        message = f"{message}: {view.message}"
    data = {"stream": view.name, "before": before, "workers": view.workers, "ready": view.ready}
    return Event(at=at, endpoint="", kind="stream", reason=reason, message=message, data=data)


def replaced_event(worker: Worker, *, at: float) -> Event:
    """That a worker was ended because it hung; `at`: Unix time."""
    record = worker.record
    message = f"stream '{record.stream}': worker {record.name} {worker.killed_for}"
    data = {"stream": record.stream, "worker": record.name, "pid": record.pid}
    return Event(
        at=at, endpoint="", kind="stream", reason="StreamWorkerReplaced", message=message, data=data
    )


_TOLD: Final = {
    "running": ("StreamRunning", "runs"),
    "paused": ("StreamPaused", "is paused"),
    "retrying": ("StreamRetrying", "waits for what it needs"),
    "stalled": ("StreamStalled", "has no partitions"),
    "degraded": ("StreamDegraded", "has lost workers"),
    "failed": ("StreamFailed", "does not run"),
}
