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
    """One run of a job. Times are in seconds since 1970."""

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
    """How far a job's schedule was gone through."""

    job: str
    schedule: str
    since: float
    handled: float
    revision: int = 0


class JobsLook(msgspec.Struct, frozen=True, kw_only=True):
    """All that a planner decides by, of one moment of the database."""

    generation: int
    marks: dict[str, JobMark]
    open: tuple[JobRun, ...]
    succeeded: dict[str, JobRun]
    """Of each job the newest of those."""
    ended: dict[str, JobRun]
    """Of each job the newest of those."""
