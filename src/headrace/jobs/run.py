"""Run of a job with any engine up to `_SUCCESS`, and the engine that runs shards in threads.

A run that ends at any point leaves only complete files, and a manifest that names them.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Final, Literal, Protocol

import msgspec

from headrace.core import Code, HeadraceError
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import CompletedShard, Shard
from headrace.jobs.prepare import Job
from headrace.jobs.results import JobStoppedError
from headrace.jobs.shard import Hooks, run_shard

_SHOWN: Final = 5


class TooManyErrorsError(HeadraceError):
    """More rows failed than the limit allows; the job can be resumed with a larger limit."""

    code = Code.FAILED_PRECONDITION

    def __init__(self, *, errors: int, limit: int, samples: list[str], run_id: str) -> None:
        shown = f": {'; '.join(dict.fromkeys(samples))[:600]}" if samples else ""
        super().__init__(
            f"{errors} rows have errors, more than --max-errors {limit} allows{shown}. What is "
            f"complete is kept; --resume {run_id} with a larger limit continues"
        )
        self.errors, self.limit = errors, limit


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of a job."""

    run_id: str
    output: str
    model: str
    model_version: str
    status: Literal["done"]
    rows: int
    """Rows of all shards."""
    errors: int
    """Failed rows of all shards."""
    shards: int
    skipped: int
    """Shards that were complete before."""
    redone: dict[str, str]
    seconds: float
    rows_per_s: float
    error_samples: list[str]
    row_problem: str = ""
    """How a row's answer depended on its batch; workers of a cluster only log it."""


class ShardEngine(Protocol):
    """Runs shards in any order. `run_job` handles resuming, the manifest and the error limit."""

    def shards(self, job: Job, hooks: Hooks) -> Generator[CompletedShard]:
        """Run the remaining shards and yield each when completed; closing it stops running ones.

        Raises:
            HeadraceError: A shard failed, or no shard can be run.
        """


@dataclass(slots=True)
class JobWatch:
    """Progress callbacks of a job. `on_rows` is called from any thread, with increments."""

    on_rows: Callable[[int, int], None] = lambda *_: None
    on_shard: Callable[[CompletedShard, Shard], None] = lambda *_: None


@dataclass(slots=True)
class _State:
    """Error count and stop flag that the threads of a job share."""

    errors: int
    limit: int | None
    stop: threading.Event = field(default_factory=threading.Event)
    samples: deque[str] = field(default_factory=lambda: deque(maxlen=_SHOWN))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, errors: int, samples: Sequence[str]) -> None:
        with self.lock:
            self.errors += errors
            if len(self.samples) < _SHOWN:
                self.samples.extend(samples[: _SHOWN - len(self.samples)])
            if self.is_beyond:
                self.stop.set()

    @property
    def is_beyond(self) -> bool:
        return self.limit is not None and self.errors > self.limit


def run_job(
    job: Job,
    folder: OutputFolder,
    *,
    engine: ShardEngine,
    max_errors: int | None,
    clock: Callable[[], float],
    watch: JobWatch,
) -> Summary:
    """Run the remaining shards of a job, under the folder's lock.

    Args:
        engine: Runs the shards.
        max_errors: Maximum number of rows with errors in the whole job; None for no limit.
        clock: Returns monotonic seconds.

    Raises:
        TooManyErrorsError: More rows than `max_errors` have errors.
        HeadraceError: A shard failed; completed shards remain.
        KeyboardInterrupt: The user interrupted the run; raised after all shards have stopped.
    """
    started = clock()
    before = sum(done.errors for done in job.left.done)
    state = _State(errors=before, limit=max_errors)
    done = list(job.left.done)
    new_rows = 0

    def on_rows(rows: int, errors: int, samples: Sequence[str]) -> None:
        state.count(errors, samples)
        watch.on_rows(rows, errors)

    hooks = Hooks(on_rows=on_rows, is_stopped=state.stop.is_set)
    with folder.appending(done) as manifest:
        if not state.is_beyond:
            with closing(engine.shards(job, hooks)) as finished:
                for result in finished:
                    manifest.add(result)
                    watch.on_shard(result, job.record.shards[result.shard])
                    done.append(result)
                    new_rows += result.rows
        if state.is_beyond:
            assert max_errors is not None
            raise TooManyErrorsError(
                errors=state.errors,
                limit=max_errors,
                samples=list(state.samples),
                run_id=job.record.id,
            )
    seconds = clock() - started
    summary = Summary(
        run_id=job.record.id,
        output=job.task.output,
        model=job.record.model.reference,
        model_version=job.record.model.version,
        status="done",
        rows=sum(shard.rows for shard in done),
        errors=sum(shard.errors for shard in done),
        shards=len(job.record.shards),
        skipped=len(job.left.done),
        redone={str(number): reason for number, reason in job.left.redo.items()},
        seconds=round(seconds, 3),
        rows_per_s=round(new_rows / seconds, 1) if seconds > 0 else 0.0,
        error_samples=list(state.samples),
        row_problem="" if job.scorer.difference is None else job.scorer.difference.text,
    )
    folder.sweep()
    folder.complete(msgspec.json.encode(summary) + b"\n")
    return summary


_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngine:
    """Engine with threads in this process: a model releases the GIL while it runs."""

    workers: int
    """Number of shards that run at once."""

    def shards(self, job: Job, hooks: Hooks) -> Generator[CompletedShard]:
        """Run the shards; see `ShardEngine.shards`."""
        closed = Event()

        def is_stopped() -> bool:
            return closed.is_set() or hooks.is_stopped()

        with _pools(job, self.workers) as (shards, runs):
            own = replace(hooks, is_stopped=is_stopped, pool=runs)
            todo = iter(job.left.todo)
            waiting: set[Future[CompletedShard]] = set()
            try:
                while True:
                    # Not more than can run at once, so that a stop has no queued shards to cancel.
                    while len(waiting) < self.workers and not is_stopped():
                        shard = next(todo, None)
                        if shard is None:
                            break
                        waiting.add(
                            shards.submit(run_shard, job.task, shard, job.source, job.scorer, own)
                        )
                    if not waiting:
                        return
                    finished, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
                    for future in finished:
                        try:
                            yield future.result()
                        except JobStoppedError:
                            continue
            finally:
                closed.set()


@contextmanager
def _pools(
    job: Job, workers: int
) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor | None]]:
    """Yield an executor for shards and, with too few shards for all cores, another for runs."""
    few = len(job.left.todo) < 2 * workers and workers > 1 and job.scorer.concurrent
    shards = ThreadPoolExecutor(workers, "shard")
    runs = ThreadPoolExecutor(workers, "run") if few else None
    try:
        yield shards, runs
    finally:
        shards.shutdown(wait=True)
        if runs is not None:
            runs.shutdown(wait=True)
