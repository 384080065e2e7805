"""Records of job runs and of how far schedules were gone through."""

from enum import StrEnum
from typing import Any

import msgspec


class RunState(StrEnum):
    """Where a run is."""

    WAITING = "waiting"
    """Somebody will begin it, or go on with it, from `next_try_at` on."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    """Its moment passed and nothing ran; `message` says why."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will become of it."""
        return self not in {RunState.WAITING, RunState.RUNNING}


class JobRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a job. Times are in seconds since 1970.

    `moment`: of the schedule, or when somebody asked for it (`trigger` is `manual`, by `actor`).
    `document`: the job as the spec had it then. `tries`: how often it was begun and not interrupted
    from outside. `interruptions`: how often it was, in a row: since a shard was finished after the
    `shards_then` that were done at the last one. `owner`: the control plane whose process it is;
    empty for none. `fence` grows by one with each owner, `beat` with each sign of life of the
    owner's.
    """

    id: str
    job: str
    moment: float
    state: RunState
    document: dict[str, Any]
    trigger: str = "schedule"
    actor: str = ""
    created: float = 0.0
    began: float | None = None
    ended: float | None = None
    next_try_at: float = 0.0
    tries: int = 0
    interruptions: int = 0
    shards_then: int = 0
    output: str = ""
    rows: int = 0
    errors: int = 0
    shards: int = 0
    shards_done: int = 0
    message: str = ""
    cancelled_by: str = ""
    owner: str = ""
    fence: int = 0
    beat: int = 0


class JobMark(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job's schedule was gone through.

    `schedule`: in words, so that another one is noticed; in force since `since`. `handled`: the
    newest moment that was started or left out. `revision` grows by one with every change.
    """

    job: str
    schedule: str
    since: float
    handled: float
    revision: int = 0


class JobsLook(msgspec.Struct, frozen=True, kw_only=True):
    """All that a planner decides by, of one moment of the database.

    `open`: runs that are not over. `succeeded`, `ended`: of each job the newest of those.
    `generation`: of the desired state.
    """

    generation: int
    marks: dict[str, JobMark]
    open: tuple[JobRun, ...]
    succeeded: dict[str, JobRun]
    ended: dict[str, JobRun]
