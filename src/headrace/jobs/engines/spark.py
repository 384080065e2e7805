"""The engine of Spark: one job of Spark, a partition for each shard.

The partitions are an RDD's: `mapInArrow` would bring pandas, Arrow and Spark SQL to carry a number
there and nothing back, at twice the cost of a shard (measured: 0.28 s and 0.13 s on busy cores).

What a shard came to reaches the driver by an accumulator, as soon as the shard is done: what an
action returns comes when all is done, and a driver that is killed before would know of nothing.
"""

import os
import queue
import re
import secrets
import shutil
import sys
import warnings
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
_HERE: Final = {
    "PYSPARK_PYTHON": sys.executable,
    "SPARK_LOCAL_HOSTNAME": "localhost",
    "SPARK_LOCAL_IP": "127.0.0.1",
}
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
        master = master_of(self.address, self.workers)
        with (
            _connected(pyspark, master, self.workers) as context,
            _running(pyspark, context, errand, todo) as run,
        ):
            yield from _finished(run, Ledger((), told), told, len(todo))


def import_spark() -> Any:  # noqa: ANN401  # its types are not there where it is not
    """PySpark, where Java is too.

    Raises:
        FailedPreconditionError: One of them is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Of pandas' newer versions, which nothing here uses.
            warnings.simplefilter("ignore", FutureWarning)
            import pyspark  # noqa: PLC0415  # large, and few have it
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
def _connected(pyspark: Any, master: str, workers: int | None) -> Iterator[Any]:  # noqa: ANN401  # as above
    """The context of a job; Spark has one a process."""
    from py4j.protocol import Py4JError  # noqa: PLC0415  # comes with PySpark
    from pyspark.errors import PySparkException  # noqa: PLC0415  # as above

    options = {
        "spark.master": master,
        "spark.app.name": "headrace batch run",
        "spark.log.level": "ERROR",
        "spark.task.maxFailures": str(TRIES),
        "spark.ui.showConsoleProgress": "false",
    }
    if _LOCAL.fullmatch(master):
        # Workers are processes of this Python, and nobody looks at a page for a moment. Spark else
        # asks the network what this machine is called, which takes minutes where nobody answers.
        for name, value in _HERE.items():
            os.environ.setdefault(name, value)
        options["spark.ui.enabled"] = "false"
    elif workers is not None:
        options["spark.cores.max"] = str(workers)
    conf = pyspark.SparkConf().setAll(list(options.items()))
    with own_signals():
        try:
            context = pyspark.SparkContext(conf=conf)
        except (OSError, Py4JError, PySparkException, RuntimeError) as error:
            raise UnavailableError(f"no Spark at --address {master}: {one_line(error)}") from error
    try:
        yield context
    finally:
        context.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A job of Spark under way. `told`: outcomes so far, in the order in which they came.

    `ended`: gets None at its end, or what ended it.
    """

    told: Any
    ended: "queue.SimpleQueue[Exception | None]"


@contextmanager
def _running(pyspark: Any, context: Any, errand: bytes, todo: list[Shard]) -> Iterator[_Run]:  # noqa: ANN401  # as above
    told = context.accumulator([], _lists(pyspark))
    group = f"headrace-{secrets.token_hex(4)}"
    there = _partition(shard_runner(versions()), errand, told)
    shards = [(one.number, msgspec.json.encode(one)) for one in todo]
    partitions = context.parallelize(shards, len(shards)).mapPartitions(there)
    run = _Run(told=told, ended=queue.SimpleQueue())

    def collect() -> None:
        context.setJobGroup(group, "headrace batch run", interruptOnCancel=True)
        try:
            partitions.count()
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
    if "ModuleNotFoundError" in text or "ImportError" in text:
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
