"""Local job engine: shards run in threads of this process."""

from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Final

from headrace.jobs.answering import StoppedError
from headrace.jobs.messages import Done
from headrace.jobs.preparing import Job
from headrace.jobs.running import JobCallbacks
from headrace.jobs.shard import Hooks, run_shard

_LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngine:
    """Threads, as the model frees them while it runs. `workers`: shards at once."""

    workers: int

    def shards(self, job: Job, callbacks: JobCallbacks) -> Generator[Done]:
        """As `Engine.shards`."""
        closed = Event()

        def is_stopped() -> bool:
            return closed.is_set() or callbacks.is_stopped()

        def on_rows(rows: int, errors: list[str]) -> None:
            callbacks.on_rows(rows, len(errors), errors)

        with _pools(job, self.workers) as (shards, runs):
            hooks = Hooks(on_rows=on_rows, is_stopped=is_stopped, pool=runs)
            todo = iter(job.left.todo)
            waiting: set[Future[Done]] = set()
            try:
                while True:
                    # No more than are run at once: whoever stops has nothing to take back.
                    while len(waiting) < self.workers and not is_stopped():
                        shard = next(todo, None)
                        if shard is None:
                            break
                        waiting.add(
                            shards.submit(run_shard, job.task, shard, job.source, job.scorer, hooks)
                        )
                    if not waiting:
                        return
                    finished, waiting = wait(waiting, _LOOK_S, FIRST_COMPLETED)
                    for future in finished:
                        try:
                            yield future.result()
                        except StoppedError:
                            continue
            finally:
                closed.set()


@contextmanager
def _pools(
    job: Job, workers: int
) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor | None]]:
    """Threads for shards and, where there are too few of these for all cores, for runs."""
    few = len(job.left.todo) < 2 * workers and workers > 1 and job.scorer.concurrent
    shards = ThreadPoolExecutor(workers, "shard")
    runs = ThreadPoolExecutor(workers, "run") if few else None
    try:
        yield shards, runs
    finally:
        shards.shutdown(wait=True)
        if runs is not None:
            runs.shutdown(wait=True)
