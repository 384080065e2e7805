"""What people see while a job runs: rows, rows a second, the time left; nothing in a pipe."""

# ruff: noqa: PLC0415  # rich is loaded where somebody watches

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.jobs.messages import Done, Shard
from headrace.jobs.preparing import Job
from headrace.jobs.running import Watch


@contextmanager
def batch_progress(job: Job) -> Iterator[Watch]:
    """Show how far a job is, where somebody watches.

    How many rows there are is known of some formats only; of all it is known how large shards are.
    """
    if not sys.stderr.isatty():
        yield Watch()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shards = job.record.shards
    counted = all(shard.rows is not None for shard in shards)
    total = sum(_weight(shard, counted=counted) for shard in shards)
    before = sum(_weight(shards[done.shard], counted=counted) for done in job.left.done)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    lock = threading.Lock()
    rows = errors = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"run {job.record.id}", total=total or None, said="", completed=before)

        def on_rows(more: int, wrong: int) -> None:
            nonlocal rows, errors
            with lock:
                rows, errors = rows + more, errors + wrong
                started = bar.tasks[0].elapsed or 0.0
            speed = rows / started if started > 0 else 0.0
            said = f"{rows:,} rows, {speed:,.0f}/s" + (f", {errors:,} errors" if errors else "")
            bar.update(task, said=said, advance=more if counted else 0)

        def on_shard(done: Done, shard: Shard) -> None:
            del done
            if not counted:
                bar.update(task, advance=_weight(shard, counted=False))

        yield Watch(on_rows=on_rows, on_shard=on_shard)


def _weight(shard: Shard, *, counted: bool) -> int:
    return (shard.rows or 0) if counted else max(shard.size_bytes, 1)
