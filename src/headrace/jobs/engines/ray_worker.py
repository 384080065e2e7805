"""Ray worker of a job: loads the model once, and runs the shards that the driver sends.

Messages between driver and worker are JSON, including errors, because Ray wraps exceptions.
"""

import socket
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from headrace.core import Code, FailedPreconditionError, HeadraceError
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import CompletedShard, Shard, Task
from headrace.jobs.prepare import Job, load_scorer
from headrace.jobs.shard import Hooks, run_shard
from headrace.jobs.sources.open import open_source
from headrace.jobs.sources.source import JobSource
from headrace.registry import read_content
from headrace.scoring.scorer import Scorer

PACKAGES: Final = ("headrace", "numpy", "onnxruntime", "polars", "pyarrow")
"""Packages whose versions must be equal everywhere: Parquet files name the writing library."""
_SHOWN: Final = 5


class JobOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Message from the driver that starts a worker of a job."""

    run_id: str
    begun_at: str
    """`begun_at` and `run_id` of the job record in the output folder."""
    task: Task
    source: str
    """The input, in a form that another machine can open."""
    model_digest: str
    """Required digest of the model's content on the worker's machine."""


class ShardOutcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Result of a shard: `done`, or an error `code` and `message`."""

    shard: int
    done: CompletedShard | None = None
    code: Code = Code.INTERNAL
    message: str = ""
    samples: list[str] = []
    """Some of the row errors."""


class ShardProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Progress of a worker within its shard; shard -1 means no shard."""

    shard: int = -1
    rows: int = 0
    errors: int = 0
    samples: list[str] = []


def order_of(job: Job, source: str) -> JobOrder:
    """Return the order for workers on other machines.

    Args:
        source: The input as the command names it.
    """
    model = job.task.model
    model = msgspec.structs.replace(model, path=str(Path(model.path).absolute()))
    opened = job.task.source
    # A URL keeps its user and password, or the names of the variables that hold them.
    return JobOrder(
        run_id=job.record.id,
        begun_at=job.record.begun_at,
        task=msgspec.structs.replace(job.task, model=model),
        source=source if "://" in opened.url else opened.url,
        model_digest=job.record.model.digest,
    )


class ShardWorker:
    """Runs shards of one job, one at a time. `progress` and `stop` may be called meanwhile."""

    def __init__(self, order: JobOrder, source: JobSource, scorer: Scorer) -> None:
        self._order, self._source, self._scorer = order, source, scorer
        self._stop = threading.Event()
        self._progress = ShardProgress()

    @classmethod
    def open(cls, document: bytes) -> Self:
        """Return a worker for a `JobOrder`, with the model loaded and the input opened.

        Raises:
            FailedPreconditionError: The output or the model does not exist on this machine.
            HeadraceError: The model cannot be loaded, or the input cannot be opened.
        """
        order = msgspec.json.decode(document, type=JobOrder)
        _check_output(order)
        _check_model(order)
        settings = order.task.source
        _, source = open_source(
            order.source, kind=settings.kind, query=settings.query, key=settings.key
        )
        return cls(order, source, load_scorer(order.task.model))

    def run(self, document: bytes) -> bytes:
        """Run a `Shard` and return its `ShardOutcome`, also if it fails."""
        shard = msgspec.json.decode(document, type=Shard)
        self._progress = ShardProgress(shard=shard.number)
        hooks = Hooks(on_rows=self._on_rows, is_stopped=self._stop.is_set)
        try:
            done = run_shard(self._order.task, shard, self._source, self._scorer, hooks)
        except HeadraceError as error:
            message = f"worker on {socket.gethostname()}: {error}"
            outcome = ShardOutcome(shard=shard.number, code=error.code, message=message)
        else:
            outcome = ShardOutcome(shard=shard.number, done=done, samples=self._progress.samples)
        return msgspec.json.encode(outcome)

    def progress(self) -> bytes:
        """Return the `ShardProgress` of the current shard."""
        return msgspec.json.encode(self._progress)

    def stop(self) -> None:
        """Abort the current shard, and run no further ones."""
        self._stop.set()

    def close(self) -> None:
        """Free the model."""
        self._scorer.close()

    def _on_rows(self, rows: int, errors: int, samples: Sequence[str]) -> None:
        before = self._progress
        self._progress = ShardProgress(
            shard=before.shard,
            rows=before.rows + rows,
            errors=before.errors + errors,
            samples=[*before.samples, *samples][:_SHOWN],
        )


def versions() -> dict[str, str]:
    """Return the installed versions of `PACKAGES`; empty for one that is not installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = ""
    return installed


def worker_class(wanted: Mapping[str, str]) -> type[Any]:  # noqa: C901  # sent whole, so all of it is in one function
    """Return the Ray actor class that holds a `ShardWorker`.

    It is defined in a function so that Ray sends its code and not its name: it imports Headrace
    only after it has compared the installed versions.

    Args:
        wanted: The driver's `versions()`.
    """
    needed = dict(wanted)

    class JobWorker:
        def __init__(self, order: bytes) -> None:
            self.order = order
            self.worker: Any = None

        def ready(self) -> str:
            """Load the model; return a failed `ShardOutcome` as JSON, or empty text."""
            import json  # noqa: PLC0415  # the class is sent without its module's imports
            import os  # noqa: PLC0415  # as above
            import socket  # noqa: PLC0415  # as above
            from importlib import metadata  # noqa: PLC0415  # as above

            wrong = []
            for name, right in needed.items():
                try:
                    installed = metadata.version(name)
                except metadata.PackageNotFoundError:
                    installed = ""
                if installed != right:
                    wrong.append(f"{name} {installed or 'is missing'}, not {right or 'none'}")
            if wrong:
                message = (
                    f"worker on {socket.gethostname()} has {'; '.join(wrong)}: install the "
                    "driver's versions on all workers, as answers could differ"
                )
                outcome = {"shard": -1, "code": "FAILED_PRECONDITION", "message": message}
                return json.dumps(outcome)
            # There is one worker per core; Polars would start one thread per core in each worker.
            os.environ.setdefault("POLARS_MAX_THREADS", "1")
            from headrace.core import HeadraceError  # noqa: PLC0415  # as above
            from headrace.jobs.engines.ray_worker import ShardWorker  # noqa: PLC0415  # as above

            try:
                self.worker = ShardWorker.open(self.order)
            except HeadraceError as error:
                message = f"a worker on {socket.gethostname()} could not begin: {error}"
                return json.dumps({"shard": -1, "code": error.code, "message": message})
            return ""

        def run(self, shard: bytes) -> bytes:
            outcome: bytes = self.worker.run(shard)
            return outcome

        def progress(self) -> bytes:
            progress: bytes = self.worker.progress()
            return progress

        def stop(self) -> None:
            if self.worker is not None:
                self.worker.stop()

    return JobWorker


def _check_output(order: JobOrder) -> None:
    folder = OutputFolder(Path(order.task.output))
    record = folder.record()
    if record is None or (record.id, record.begun_at) != (order.run_id, order.begun_at):
        msg = (
            f"{folder.path} is not the folder that the driver writes to: the output must lie on a "
            "file system that all workers share (NFS, a cluster's own), under the same path"
        )
        raise FailedPreconditionError(msg)


def _check_model(order: JobOrder) -> None:
    path = Path(order.task.model.path)
    try:
        digest = str(read_content(path).digest)
    except (OSError, HeadraceError) as error:
        msg = (
            f"the model {path} cannot be read ({error}): it must lie under the same path on all "
            "workers"
        )
        raise FailedPreconditionError(msg) from error
    if digest != order.model_digest:
        msg = (
            f"the model {path} is another than the driver's ({digest[:19]}, not "
            f"{order.model_digest[:19]}): give all workers the same"
        )
        raise FailedPreconditionError(msg)
