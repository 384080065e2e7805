"""Plan of stream workers: which are started, told to stop, killed or forgotten now. Pure.

Member names `NAME-0`, `NAME-1`, ... are stable: a broker recognises a returning member. So a new
revision replaces a member only after the old process has ended, one member at a time, while the
others keep running.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

KILL_AFTER_S: Final = 10.0
"""Seconds after its drain time at which a worker is killed."""
SILENT_TIMEOUT_S: Final = 60.0
"""Longest silence of a member in seconds. A busy member answers from another thread; only a model
that holds the GIL prevents that, and then other members have its partitions by now.
"""
LOAD_TIMEOUT_S: Final = 600.0
"""Longest silence in seconds before a member joined: it answers only after its model is loaded."""
STALLED_TIMEOUT_S: Final = 180.0
"""Longest broker call in seconds, in addition to the handover time. All calls have much shorter
deadlines, but broker clients do not always keep them.
"""


class WorkerPhase(StrEnum):
    """Phase of a worker's process."""

    STARTING = "starting"
    READY = "ready"
    """The worker is or was a member of its group."""
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedWorker:
    """One worker. All times are monotonic.

    `start_at`: when one that ended may start again. `silent_since`: when it was first asked of what
    it has not answered since; None if it answered. `still_s`: as in `StreamStatus`. `kill_sent`: it
    is being ended.
    """

    index: int
    revision: str
    phase: WorkerPhase
    since: float
    start_at: float = 0.0
    silent_since: float | None = None
    still_s: float = 0.0
    kill_sent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTimeouts:
    """How long a worker may take: to end by itself, to answer, and for one call of its broker.

    `silent_timeout_s`: once it has joined; `load_timeout_s`: before.
    """

    drain_timeout_s: float
    silent_timeout_s: float = SILENT_TIMEOUT_S
    load_timeout_s: float = LOAD_TIMEOUT_S
    still_timeout_s: float = STALLED_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start the member with the desired revision."""

    index: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the member to finish its records and exit."""

    index: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the member."""

    index: int


@dataclass(frozen=True, slots=True)
class Replace:
    """End the member now, as it hangs; it starts again. `why`: for people, about the member."""

    index: int
    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop a member that has ended and is not desired."""

    index: int


Action = StartWorker | Stop | Kill | Replace | Forget


def plan(
    workers: Sequence[ObservedWorker],
    *,
    revision: str,
    count: int,
    timeouts: WorkerTimeouts,
    now: float,
) -> list[Action]:
    """Return the actions to take now.

    Args:
        count: Desired number of members; 0 for a stream that should not run.
        now: Monotonic time.
    """
    actions: list[Action] = []
    indexes = {worker.index for worker in workers}
    for worker in workers:
        actions += _of_one(worker, revision, count, timeouts, now)
    actions += [StartWorker(index) for index in range(count) if index not in indexes]
    is_any_hung = any(isinstance(action, Replace) for action in actions)
    outdated = [w for w in workers if w.index < count and w.revision != revision]
    if outdated and not is_any_hung and _may_replace(workers, revision, count):
        actions += [
            Stop(w.index)
            for w in outdated[:1]
            if w.phase in {WorkerPhase.READY, WorkerPhase.STARTING}
        ]
    return actions


def _of_one(
    worker: ObservedWorker, revision: str, count: int, timeouts: WorkerTimeouts, now: float
) -> list[Action]:
    is_wanted = worker.index < count
    if worker.phase is WorkerPhase.ENDED:
        if not is_wanted:
            return [Forget(worker.index)]
        # A failure of another revision says nothing about this one.
        return (
            [StartWorker(worker.index)]
            if now >= worker.start_at or worker.revision != revision
            else []
        )
    if worker.phase is WorkerPhase.STOPPING:
        late = now >= worker.since + timeouts.drain_timeout_s + KILL_AFTER_S
        return [Kill(worker.index)] if late else []
    if not is_wanted:
        return [Stop(worker.index)]
    reason = "" if worker.kill_sent else _why_hung(worker, timeouts, now)
    return [Replace(worker.index, reason)] if reason else []


def _why_hung(worker: ObservedWorker, timeouts: WorkerTimeouts, now: float) -> str:
    """Return why a worker counts as hung; empty if it does not."""
    is_ready = worker.phase is WorkerPhase.READY
    timeout_s = timeouts.silent_timeout_s if is_ready else timeouts.load_timeout_s
    silent_s = 0.0 if worker.silent_since is None else now - worker.silent_since
    if silent_s >= timeout_s:
        return f"gave no response for {silent_s:.0f} s"
    if worker.still_s >= timeouts.still_timeout_s:
        return f"has waited for its broker's client for {worker.still_s:.0f} s"
    return ""


def _may_replace(workers: Sequence[ObservedWorker], revision: str, count: int) -> bool:
    """Whether another member may be replaced: replaced members work, and none is missing.

    So a revision that cannot start costs one member; the rest keep running the old one.
    """
    active = [worker for worker in workers if worker.index < count]
    if any(worker.kill_sent for worker in active):
        return False
    return all(
        worker.phase is WorkerPhase.READY for worker in active if worker.revision == revision
    ) and all(
        worker.phase in {WorkerPhase.READY, WorkerPhase.STARTING}
        for worker in active
        if worker.revision != revision
    )
