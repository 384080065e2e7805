"""A job of Spark with a partition for each shard: what is sent there, and how it is heard of.

The partitions are an RDD's: `mapInArrow` would bring pandas, Arrow and Spark SQL to carry a number
there and nothing back, at twice the cost of a shard (measured: 0.28 s and 0.13 s on busy cores).

What a shard came to reaches the driver by an accumulator, as soon as the shard is done: what an
action returns comes when all is done, and a driver that is killed before would know of nothing.
"""

import queue
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headrace.core import UnavailableError
from headrace.jobs.engines.alike import shard_runner, versions
from headrace.jobs.engines.cluster import BEGIN_S
from headrace.jobs.engines.engine import Told
from headrace.jobs.engines.errand import Outcome
from headrace.jobs.engines.ledger import TRIES, Ledger
from headrace.jobs.messages import Done, Shard

NEEDED: Final = "--engine spark needs Spark: pip install 'headrace[batch,spark]', on every machine"
_LOOK_S: Final = 0.2
_END_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job of Spark under way.

    `heard`: outcomes so far, in the order in which they came. `is_busy`: whether a worker has a
    shard now. `ended`: gets None at the job's end, or what ended it; it is looked at for `look_s`.
    """

    heard: Callable[[], list[bytes]]
    is_busy: Callable[[], bool]
    ended: "queue.SimpleQueue[Exception | None]"
    look_s: float = _LOOK_S


@contextmanager
def running(pyspark: Any, context: Any, errand: bytes, todo: list[Shard]) -> Iterator[Run]:  # noqa: ANN401  # its types are not there where it is not
    """Have a shard run by each partition; what runs then is cancelled at the end of the block."""
    from py4j.protocol import Py4JError  # noqa: PLC0415  # comes with PySpark

    told = context.accumulator([], _lists(pyspark))
    group = f"headrace-{secrets.token_hex(4)}"
    there = _partition(shard_runner(versions()), errand, told)
    shards = [(one.number, msgspec.json.encode(one)) for one in todo]
    partitions = context.parallelize(shards, len(shards)).mapPartitions(there)
    tracker = context.statusTracker()
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def is_busy() -> bool:
        try:
            stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        except (OSError, Py4JError):
            return False  # Java is gone: why, the job's own end tells
        return any(stage is not None and stage.numActiveTasks for stage in stages)

    def collect() -> None:
        context.setJobGroup(group, "headrace batch run", interruptOnCancel=True)
        try:
            partitions.count()
        except Exception as error:  # noqa: BLE001  # told to whoever waits
            ended.put(error)
        else:
            ended.put(None)

    thread = pyspark.InheritableThread(target=collect, daemon=True)
    thread.start()
    try:
        yield Run(heard=lambda: told.value, is_busy=is_busy, ended=ended)
    finally:
        if thread.is_alive():
            context.cancelJobGroup(group)
        thread.join(_END_S)


def finished(
    run: Run, ledger: Ledger, told: Told, *, shards: int, clock: Callable[[], float]
) -> Generator[Done]:
    """Outcomes as they come; one that came twice, of a worker that was given up, counts once.

    Raises:
        UnavailableError: Spark gave up, or no worker took a shard for too long.
        WorkerError: A shard could not be done.
    """
    done: set[int] = set()
    heard = 0
    busy_at = clock()
    ended = False
    while len(done) < shards and not told.is_stopped():
        came = run.heard()[heard:]
        heard += len(came)
        for outcome in (msgspec.json.decode(one, type=Outcome) for one in came):
            if outcome.shard in done:
                continue
            line = ledger.finish(outcome)
            if line is not None:
                done.add(line.shard)
                yield line
        if came or run.is_busy():
            busy_at = clock()
        elif clock() - busy_at > BEGIN_S:
            msg = (
                f"no worker of Spark took a shard within {BEGIN_S:g} s: has it free cores "
                "and the memory that spark.executor.memory asks for?"
            )
            raise UnavailableError(msg)
        if came:
            continue
        if ended:
            raise UnavailableError(f"Spark ended with {shards - len(done)} shards undone")
        ended = _has_ended(run)


def _has_ended(run: Run) -> bool:
    """Whether Spark is done, asked for a moment; UnavailableError if it gave up."""
    try:
        error = run.ended.get(timeout=run.look_s)
    except queue.Empty:
        return False
    if error is not None:
        raise UnavailableError(_gave_up(error)) from error
    return True


def _gave_up(error: Exception) -> str:
    """Why Spark ended the job, in a line that names the way out."""
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text:
        return f"Spark's workers lack a package; {NEEDED}: {_cause(text)}"
    if "most recent failure" not in text:
        return (
            f"Spark ended the job: {_cause(text)}; does its master answer? --resume goes on when "
            "the cluster is well"
        )
    return (
        f"Spark gave a shard up after {TRIES} tries: {_cause(text)}. If workers ended, they may "
        "need more memory; --resume goes on when the cluster is well"
    )


def _cause(text: str) -> str:
    """The line of a trace that says what happened."""
    lines = [line.strip(" :\t") for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith("at ")]
    named = [line for line in told if re.match(r"[\w.]*(?:Error|Exception|Failure)\b.*:", line)]
    return (named or told or ["nothing was told"])[-1][:400]


def _lists(pyspark: Any) -> Any:  # noqa: ANN401  # as above
    """How lists add up. Sent to workers, so it needs nothing of ours there."""

    class Lists(pyspark.AccumulatorParam):  # type: ignore[misc]  # untyped where Spark is not installed
        def zero(self, value: list[bytes]) -> list[bytes]:
            del value
            return []

        def addInPlace(self, value1: list[bytes], value2: list[bytes]) -> list[bytes]:  # noqa: N802  # Spark's name
            value1.extend(value2)
            return value1

    return Lists()


def _partition(
    run: Callable[[bytes, bytes, int], bytes],
    errand: bytes,
    told: Any,  # noqa: ANN401  # as above
) -> Callable[[Iterable[tuple[int, bytes]]], Iterable[int]]:
    """What runs in a worker, for a partition: one shard."""

    def there(shards: Iterable[tuple[int, bytes]]) -> Iterable[int]:
        for number, shard in shards:
            told.add([run(errand, shard, number)])
            yield number

    return there
