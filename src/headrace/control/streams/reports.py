"""Reports of stream workers: polling over their sockets, and views for users and programs."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from headrace.autoscale.stream import StreamObservation, StreamScale, scale_stream
from headrace.control.model.desired import DesiredStream
from headrace.control.model.records import Event
from headrace.control.streams.driver import StreamDriver
from headrace.control.streams.plan import WorkerPhase
from headrace.control.streams.status import StreamView, is_stalled, lag_of, rates, state_of
from headrace.control.streams.workers import (
    StreamTrack,
    StreamWorker,
    Team,
    note_answer,
    note_status,
    worker_view,
)
from headrace.core import Clock
from headrace.core.fetch import ask, text_of
from headrace.monitor.slo import LETTERS_WINDOW_S, StreamFacts
from headrace.streaming.settings import StreamStatus, WorkerState

_TIMEOUT_S: Final = 1.0


async def status_of(address: str) -> StreamStatus | None:
    """Return a worker's status; None if it does not answer."""
    decode = msgspec.json.Decoder(StreamStatus).decode
    return await ask(address, "/internal/status", decode, timeout_s=_TIMEOUT_S)


async def metrics_of(address: str) -> str:
    """Return a worker's metrics; empty if it does not answer."""
    return await ask(address, "/metrics", text_of, timeout_s=_TIMEOUT_S) or ""


async def send_command(address: str, verb: Literal["pause", "resume"]) -> None:
    """Pause or resume a worker's consumption; a lost command is sent again.

    The caller detects a lost command from the worker's status.
    """
    await ask(address, f"/internal/{verb}", bytes, method="POST", timeout_s=_TIMEOUT_S)


_LONGEST_GAP_S: Final = 10.0
"""Longest gap in seconds between two polls; after a longer one silence is counted from 0."""


@dataclass(slots=True)
class WorkerPoller:
    """Polls workers for their status, and records it in them."""

    driver: StreamDriver
    clock: Clock
    _answered_at: float = -math.inf

    async def poll(
        self, workers: Sequence[StreamWorker]
    ) -> list[tuple[StreamWorker, StreamStatus]]:
        """Return the workers that answered, each with its status."""
        before = {w.record.name: w.status for w in workers if w.status is not None}
        addresses = [self.driver.address_of(worker.record) for worker in workers]
        answers = await asyncio.gather(*map(status_of, addresses))
        earlier, now = self._answered_at, self.clock.monotonic()
        self._answered_at, starts = now, now - earlier > _LONGEST_GAP_S
        for worker, status in zip(workers, answers, strict=True):
            note_answer(worker, answered=status is not None, now=now, starts=starts)
        reports = [
            (worker, status)
            for worker, status in zip(workers, answers, strict=True)
            if status is not None and worker.phase is not WorkerPhase.ENDED
        ]
        answer_rates = rates(before, {worker.record.name: status for worker, status in reports})
        for worker, status in reports:
            rate = answer_rates[worker.record.name]
            if note_status(worker, status, rate=rate, now=self.clock.monotonic()):
                worker.record = msgspec.structs.replace(worker.record, was_ready=True)
                self.driver.note(worker.record)
        return reports


def is_scaled(stream: DesiredStream) -> bool:
    """Whether the number of its workers follows the lag."""
    return stream.min_workers < stream.max_workers


def count_of(stream: DesiredStream, team: Team) -> int:
    """Return the desired number of workers of a stream."""
    if not is_scaled(stream):
        return stream.min_workers
    return min(max(team.scale.workers, stream.min_workers), stream.max_workers)


def rescale(team: Team, stream: DesiredStream, *, paused: bool, now: float) -> bool:
    """Decide the number of workers from the lag; return whether it changed.

    The lag is not used while a worker is silent or the stream is paused.

    Args:
        now: Monotonic time.
    """
    statuses = team.statuses()
    lag, before = lag_of(statuses), team.scale.workers
    is_silent = any(worker.silent_since is not None for worker in team.running())
    is_known = len(statuses) >= count_of(stream, team) and not (paused or is_silent)
    observation = StreamObservation(
        now=now,
        lag_records=lag.records if is_known else None,
        lag_s=lag.seconds if is_known else None,
        rate=sum(worker.rate for worker in team.workers.values()),
        partitions=lag.partitions if is_known else None,
    )
    scale = StreamScale(
        min_workers=stream.min_workers,
        max_workers=stream.max_workers,
        target_lag_s=stream.target_lag_s,
    )
    decision, team.scale = scale_stream(scale, observation, team.scale)
    team.scaling = (
        f"{decision.reason}: {decision.message}" if decision.message else str(decision.reason)
    )
    return team.scale.workers != before


def view_of(
    stream: DesiredStream, team: Team, *, revision: str, paused: bool, now: float
) -> StreamView:
    """Return a stream's view at monotonic `now`; `revision` is its workers' desired revision."""
    members = tuple(
        worker_view(worker, revision, now=now) for _, worker in sorted(team.workers.items())
    )
    statuses = team.statuses()
    lag, count = lag_of(statuses), count_of(stream, team)
    state = state_of(members, count=count, paused=paused) if members else "starting"
    message = next((member.message for member in members if member.message), team.start_error)
    if state in {"running", "retrying"} and all(map(is_stalled, statuses)):
        state = "stalled"
        unassigned_s = min(status.unassigned_s for status in statuses)
        reason = message if any(status.lacks_topic for status in statuses) else ""
        message = (
            f"no worker has had a partition of {', '.join(stream.settings.topics)} for "
            f"{unassigned_s:.0f} s: "
        ) + (
            reason
            or f"other members of group '{stream.settings.group}' hold all of them, or the topics "
            "have none"
        )
    return StreamView(
        name=stream.name,
        state=state,
        model=stream.model,
        topics=tuple(stream.settings.topics),
        sink=stream.settings.sink,
        group=stream.settings.group,
        ready=sum(worker.phase is WorkerPhase.READY for worker in team.workers.values()),
        workers=count,
        min_workers=stream.min_workers,
        max_workers=stream.max_workers,
        lag_records=lag.records,
        lag_s=lag.seconds,
        rate=sum(worker.rate for worker in team.workers.values()),
        answered=sum(status.answered for status in statuses),
        dead_letters=sum(status.dead_letters for status in statuses),
        retries=sum(status.retries for status in statuses),
        restarts=team.restarts,
        stalls=team.stalls,
        message=message,
        scaling=team.scaling,
        members=members,
        running=_running(statuses),
        failing=sum(worker.is_failing for worker in team.workers.values()),
        paused=paused,
        stuck=any(worker.is_stuck for worker in team.workers.values()),
        warning=next(filter(None, (s.row_problem or s.lag_problem for s in statuses)), ""),
    )


def track_team(team: Team, *, now: float) -> None:
    """Record the newest statuses of a stream's workers.

    Args:
        now: Unix time.
    """
    statuses = team.statuses()
    team.track.note(statuses, lag_of(statuses), running=_running(statuses), now=now)


def facts_of(view: StreamView, track: StreamTrack, *, now: float) -> StreamFacts:
    """Return the facts of a stream for alerts.

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
    """Return how many consume records; a worker without a partition does not."""
    return sum(
        status.state is WorkerState.RUNNING and not is_stalled(status) for status in statuses
    )


def event_of(view: StreamView, *, before: str, timestamp: float) -> Event:
    """Return the event of a stream's new state.

    Args:
        before: The last announced state; empty for none.
        timestamp: Unix time.
    """
    reason, text = _TOLD[view.state]
    message = f"stream '{view.name}' {text}"
    if view.message and view.state not in {"running", "paused"}:
        message = f"{message}: {view.message}"
    data = {"stream": view.name, "before": before, "workers": view.workers, "ready": view.ready}
    return Event(
        at=timestamp, endpoint="", kind="stream", reason=reason, message=message, data=data
    )


def replaced_event(worker: StreamWorker, reason: str, *, timestamp: float) -> Event:
    """Return the event of a worker that ended because it hung; `timestamp` is Unix time."""
    return _worker_event(worker, "StreamWorkerReplaced", reason, timestamp)


def expired_before(worker: StreamWorker) -> float:
    """Return the expired records that were reported; infinite if a worker was just adopted."""
    if worker.status is not None:
        return worker.status.expired
    return 0 if worker.phase is WorkerPhase.STARTING else math.inf


def expired_event(worker: StreamWorker, expired: float, *, timestamp: float) -> Event:
    """Return the event of unread records that retention deleted; `timestamp` is Unix time."""
    reason = f"found that retention had deleted {expired:.0f} records before they were read"
    return _worker_event(worker, "StreamRecordsExpired", reason, timestamp)


def _worker_event(worker: StreamWorker, reason: str, text: str, timestamp: float) -> Event:
    record = worker.record
    message = f"stream '{record.stream}': worker {record.name} {text}"
    data = {"stream": record.stream, "worker": record.name, "pid": record.pid}
    return Event(
        at=timestamp, endpoint="", kind="stream", reason=reason, message=message, data=data
    )


_TOLD: Final = {
    "running": ("StreamRunning", "runs"),
    "paused": ("StreamPaused", "is paused"),
    "retrying": ("StreamRetrying", "waits for what it needs"),
    "stalled": ("StreamStalled", "has no partitions"),
    "degraded": ("StreamDegraded", "has lost workers"),
    "failed": ("StreamFailed", "does not run"),
}
