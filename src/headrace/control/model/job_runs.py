"""Records of job runs and of the progress of schedules."""

from enum import StrEnum
from typing import Any

import msgspec


class RunState(StrEnum):
    """State of a run."""

    WAITING = "waiting"
    """The run starts or resumes at `next_try_at`."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    """The scheduled time passed without a run; `message` says why."""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
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
    """Progress of a job's schedule."""

    job: str
    schedule: str
    since: float
    handled: float
    revision: int = 0


class JobsSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshot of the database on which a planner decides."""

    generation: int
    marks: dict[str, JobMark]
    open: tuple[JobRun, ...]
    succeeded: dict[str, JobRun]
    """The newest successful run of each job."""
    ended: dict[str, JobRun]
    """The newest ended run of each job."""
