"""Which worker of a stream is started, told to stop, killed or forgotten now? Pure.

Members are called `NAME-0`, `NAME-1`, ... and stay so: a broker knows who comes back. So a new
revision takes a member's place only after the old process has ended, one member at a time, and the
others go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

KILL_AFTER_S: Final = 10.0
"""So much longer than its drain a worker may take to end."""


class Phase(StrEnum):
    """Where a worker's process is."""

    STARTING = "starting"
    READY = "ready"
    """It is, or was, a member of its group."""
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One worker. `since`: in monotonic time; `start_at`: when one that ended may start again."""

    index: int
    revision: str
    phase: Phase
    since: float
    start_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """Start the member, with the revision that is wanted."""

    index: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Let the member finish what it has, and end."""

    index: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the member now."""

    index: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The member has ended and is not wanted."""

    index: int


Action = Start | Stop | Kill | Forget


def plan(
    workers: Sequence[Seen], *, revision: str, count: int, drain_timeout_s: float, now: float
) -> list[Action]:
    """What to do now.

    Args:
        count: How many members there should be; 0 for a stream that should not run.
        now: Monotonic time.
    """
    actions: list[Action] = []
    known = {worker.index for worker in workers}
    for worker in workers:
        actions += _of_one(worker, revision, count, drain_timeout_s, now)
    actions += [Start(index) for index in range(count) if index not in known]
    outdated = [w for w in workers if w.index < count and w.revision != revision]
    if outdated and _may_replace(workers, revision, count):
        actions += [Stop(w.index) for w in outdated[:1] if _runs(w)]
    return actions


def _of_one(
    worker: Seen, revision: str, count: int, drain_timeout_s: float, now: float
) -> list[Action]:
    is_wanted = worker.index < count
    if worker.phase is Phase.ENDED:
        if not is_wanted:
            return [Forget(worker.index)]
        # What was wrong with another revision says nothing about this one.
        return (
            [Start(worker.index)] if now >= worker.start_at or worker.revision != revision else []
        )
    if worker.phase is Phase.STOPPING:
        late = now >= worker.since + drain_timeout_s + KILL_AFTER_S
        return [Kill(worker.index)] if late else []
    return [] if is_wanted else [Stop(worker.index)]


def _may_replace(workers: Sequence[Seen], revision: str, count: int) -> bool:
    """Whether another member may be taken out: those that were replaced work, and none is away.

    A revision that cannot start thus costs one member; the rest go on with the old one.
    """
    wanted = [worker for worker in workers if worker.index < count]
    return all(
        worker.phase is Phase.READY for worker in wanted if worker.revision == revision
    ) and all(
        worker.phase in {Phase.READY, Phase.STARTING}
        for worker in wanted
        if worker.revision != revision
    )


def _runs(worker: Seen) -> bool:
    return worker.phase in {Phase.READY, Phase.STARTING}
