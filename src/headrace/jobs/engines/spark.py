"""The engine of Spark: one job of Spark, a partition for each shard, `mapInArrow` over them.

What a shard came to reaches the driver by an accumulator, as soon as the shard is done: what an
action returns comes when all is done, and a driver that is killed before would know of nothing.
"""

import os
import queue
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.core import FailedPreconditionError, UnavailableError
from headrace.jobs.engines.alike import shard_runner, versions
from headrace.jobs.engines.cluster import one_line, own_signals
from headrace.jobs.engines.engine import Told
from headrace.jobs.engines.errand import Outcome, errand_of
from headrace.jobs.engines.ledger import TRIES, Ledger
from headrace.jobs.messages import Done, Shard
from headrace.jobs.preparing import Job

NEEDED: Final = "--engine spark needs Spark: pip install 'headrace[batch,spark]', on every machine"
JAVA: Final = (
    "--engine spark needs Java 17 or newer, and there is none: install it (Debian and Ubuntu: "
    "openjdk-17-jre-headless), or let JAVA_HOME name its folder"
)
LOCAL: Final = "local"
_LOCAL: Final = re.compile(r"local(?:\[(?P<cores>\d+|\*)(?:,\s*(?P<tries>\d+))?\])?")
_LOOK_S: Final = 0.2
_END_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SparkEngine:
    """Workers of Spark.

    `source`: the input as a person named it. `address`: a master of Spark, such as `local[2]` or
    `spark://HOST:PORT`. `workers`: shards at once; None for what the master says.
    """

    source: str
    address: str = LOCAL
    workers: int | None = None

    def shards(self, job: Job, told: Told) -> Generator[Done]:
        """As `Engine.shards`. How far a shard is, Spark does not say: only that it is done.

        Raises:
            UnavailableError: The cluster is not there, or gave up.
        """
        todo = job.left.todo
        if not todo:
            return
        pyspark = import_spark()
        errand = msgspec.json.encode(errand_of(job, self.source))
        with _session(master_of(self.address, self.workers), self.workers) as spark:
            ledger = Ledger((), told)
            with _running(pyspark, spark, errand, todo) as run:
                yield from _finished(run, ledger, told, len(todo))


def import_spark() -> Any:  # noqa: ANN401  # its types are not there where it is not
    """PySpark, where Java is too.

    Raises:
        FailedPreconditionError: One of them is not installed.
    """
    try:
        import pyspark  # noqa: PLC0415  # large, and few have it
        import pyspark.sql  # noqa: PLC0415  # as above
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(NEEDED) from error
    home = os.environ.get("JAVA_HOME", "")
    if not (Path(home, "bin", "java").is_file() if home else shutil.which("java")):
        raise FailedPreconditionError(JAVA)
    return pyspark


def master_of(address: str, workers: int | None) -> str:
    """A master that tries the shard of a worker that is lost again: `local[2]` alone does not.

    Raises:
        FailedPreconditionError: It is Spark Connect, which tells nothing before all is done.
    """
    if address.startswith("sc://"):
        msg = f"--address {address} is Spark Connect, which has no accumulators; name a master"
        raise FailedPreconditionError(msg)
    found = _LOCAL.fullmatch(address)
    if found is None:
        return address
    return f"local[{found['cores'] or workers or '*'},{found['tries'] or TRIES}]"


@contextmanager
def _session(master: str, workers: int | None) -> Iterator[Any]:
    from pyspark.errors import PySparkException  # noqa: PLC0415  # few have it
    from pyspark.sql import SparkSession  # noqa: PLC0415  # as above

    builder = (
        SparkSession.builder.appName("headrace batch run")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
        .config("spark.task.maxFailures", str(TRIES))
    )
    if master.startswith(LOCAL):
        # Here, workers are processes of this Python, and nobody looks at a page for a moment.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = builder.config("spark.ui.enabled", "false")
    elif workers is not None:
        builder = builder.config("spark.cores.max", str(workers))
    with own_signals():
        try:
            spark = builder.master(master).getOrCreate()
        except Exception as error:  # py4j's errors have no common root with PySpark's
            if not isinstance(error, (PySparkException, OSError)) and not _is_java(error):
                raise
            raise UnavailableError(f"no Spark at --address {master}: {one_line(error)}") from error
    try:
        yield spark
    finally:
        spark.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A job of Spark under way. `told`: outcomes so far, in the order in which they came.

    `ended`: gets None at its end, or what ended it.
    """

    told: Any
    ended: "queue.SimpleQueue[Exception | None]"


@contextmanager
def _running(pyspark: Any, spark: Any, errand: bytes, todo: list[Shard]) -> Iterator[_Run]:  # noqa: ANN401  # as above
    context = spark.sparkContext
    told = context.accumulator([], _lists(pyspark))
    group = f"headrace-{secrets.token_hex(4)}"
    there = _partition(versions(), errand, [msgspec.json.encode(one) for one in todo],
                       [one.number for one in todo], told)  # fmt: skip
    frame = spark.range(0, len(todo), 1, len(todo)).mapInArrow(there, "shard bigint")
    run = _Run(told=told, ended=queue.SimpleQueue())

    def collect() -> None:
        context.setJobGroup(group, "headrace batch run", interruptOnCancel=True)
        try:
            frame.collect()
        except Exception as error:  # noqa: BLE001  # told to whoever waits
            run.ended.put(error)
        else:
            run.ended.put(None)

    thread = pyspark.InheritableThread(target=collect, daemon=True)
    thread.start()
    try:
        yield run
    finally:
        if thread.is_alive():
            context.cancelJobGroup(group)
        thread.join(_END_S)


def _finished(run: _Run, ledger: Ledger, told: Told, shards: int) -> Generator[Done]:
    """Outcomes as they come; one that came twice, of a worker that was given up, counts once."""
    done: set[int] = set()
    heard = 0
    ended = False
    while len(done) < shards and not told.is_stopped():
        came = run.told.value[heard:]
        heard += len(came)
        for outcome in (msgspec.json.decode(one, type=Outcome) for one in came):
            if outcome.shard in done:
                continue
            finished = ledger.finish(outcome)
            if finished is not None:
                done.add(finished.shard)
                yield finished
        if came:
            continue
        if ended:
            raise UnavailableError(f"Spark ended with {shards - len(done)} shards undone")
        try:
            error = run.ended.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
        if error is not None:
            raise UnavailableError(_gave_up(error)) from error
        ended = True


def _gave_up(error: Exception) -> str:
    """Why Spark ended the job, in a line that names the way out."""
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text or "PACKAGE_NOT_INSTALLED" in text:
        return f"Spark's workers lack a package; {NEEDED}: {_cause(text)}"
    return (
        f"Spark gave a shard up after {TRIES} tries: {_cause(text)}. If workers ended, they may "
        "need more memory; --resume goes on when the cluster is well"
    )


def _cause(text: str) -> str:
    """The line of a trace that says what happened."""
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Failure)\b.*:", line)]
    return (named or [line for line in lines if line] or ["nothing was told"])[-1][:400]


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
    wanted: dict[str, str],
    errand: bytes,
    shards: list[bytes],
    numbers: list[int],
    told: Any,  # noqa: ANN401  # as above
) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """What runs in a worker, for a partition: one row, the place of a shard among `shards`."""
    run = shard_runner(wanted)

    def there(batches: Iterable[Any]) -> Iterable[Any]:
        import pyarrow as pa  # noqa: PLC0415  # runs elsewhere

        for batch in batches:
            for place in batch.column(0).to_pylist():
                told.add([run(errand, shards[place], numbers[place])])
                yield pa.RecordBatch.from_pydict({"shard": pa.array([place], pa.int64())})

    return there


def _is_java(error: Exception) -> bool:
    return type(error).__module__.startswith("py4j")
