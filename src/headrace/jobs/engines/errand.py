"""What the driver of a job and its workers tell each other: plain data, as JSON."""

from pathlib import Path

import msgspec

from headrace.core import Code, HeadraceError
from headrace.jobs.messages import Done, Task
from headrace.jobs.preparing import Job


class Errand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every worker of a job is told.

    `run_id`, `begun_at`: of the job, as its output says. `source`: the input as it can be opened
    elsewhere. `model_digest`: of the content that the model must have there too.
    """

    run_id: str
    begun_at: str
    task: Task
    source: str
    model_digest: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a shard: `done`, or a `code` and a `message`; `samples` of what rows had."""

    shard: int
    done: Done | None = None
    code: Code = Code.INTERNAL
    message: str = ""
    samples: list[str] = []


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a worker is with the shard that it has; -1 for none."""

    shard: int = -1
    rows: int = 0
    errors: int = 0
    samples: list[str] = []


class WorkerError(HeadraceError):
    """A worker of a cluster could not do its shard; `code` is that of what went wrong there."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


def errand_of(job: Job, source: str) -> Errand:
    """What workers elsewhere need to run shards of a job.

    Args:
        source: The input as a person named it.
    """
    settings = job.task.model
    settings = msgspec.structs.replace(settings, path=str(Path(settings.path).absolute()))
    told = job.task.source
    # A database or a store keeps its user and password, or the names of variables that hold them.
    return Errand(
        run_id=job.record.id,
        begun_at=job.record.begun_at,
        task=msgspec.structs.replace(job.task, model=settings),
        source=source if "://" in told.url else told.url,
        model_digest=job.record.model.digest,
    )
