"""The engine of Spark: Java and a master are there, and the job of Spark goes to it."""

import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.core import FailedPreconditionError, InvalidArgumentError, UnavailableError
from headrace.jobs.engines.address import places_of, why_silent
from headrace.jobs.engines.cluster import one_line, own_signals
from headrace.jobs.engines.engine import Told
from headrace.jobs.engines.errand import errand_of
from headrace.jobs.engines.ledger import TRIES, Ledger
from headrace.jobs.engines.spark_job import NEEDED, finished, running
from headrace.jobs.messages import Done
from headrace.jobs.preparing import Job

JAVA: Final = (
    "--engine spark needs Java 17 or newer, and there is none: install it (Debian and Ubuntu: "
    "openjdk-17-jre-headless), or let JAVA_HOME name its folder"
)
LOCAL: Final = "local"
_SCHEMES: Final = ("spark",)
_LOCAL: Final = re.compile(r"local(?:\[(?P<cores>\d+|\*)(?:,\s*(?P<tries>\d+))?\])?")
_HERE: Final = {
    "PYSPARK_PYTHON": sys.executable,
    "SPARK_LOCAL_HOSTNAME": "localhost",
    "SPARK_LOCAL_IP": "127.0.0.1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SparkEngine:
    """Workers of Spark.

    `source`: the input as a person named it. `address`: a master of Spark, such as `local[2]` or
    `spark://HOST:PORT`. `workers`: shards at once; None for what the master says.
    """

    source: str
    address: str = LOCAL
    workers: int | None = None
    clock: Callable[[], float] = time.monotonic

    def shards(self, job: Job, told: Told) -> Generator[Done]:
        """As `Engine.shards`. How far a shard is, Spark does not say: only that it is done.

        Raises:
            UnavailableError: The cluster is not there, has no place for a worker, or gave up.
        """
        todo = job.left.todo
        if not todo:
            return
        pyspark = import_spark()
        errand = msgspec.json.encode(errand_of(job, self.source))
        master = master_of(self.address, self.workers)
        with (
            _connected(pyspark, master, self.workers) as context,
            running(pyspark, context, errand, todo) as run,
        ):
            yield from finished(run, Ledger((), told), told, shards=len(todo), clock=self.clock)


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
        InvalidArgumentError: It is no master, or names no port.
    """
    if address.startswith("sc://"):
        msg = f"--address {address} is Spark Connect, which has no accumulators; name a master"
        raise FailedPreconditionError(msg)
    found = _LOCAL.fullmatch(address)
    if found is None:
        if "://" not in address and not address.startswith(("local-cluster[", "yarn")):
            known = "spark://HOST:PORT, local[4] or yarn"
            raise InvalidArgumentError(f"--address {address} is no master of Spark: say {known}")
        places_of(address, schemes=_SCHEMES)
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
    silent = why_silent(places_of(master, schemes=_SCHEMES))
    if silent:
        raise UnavailableError(f"no Spark at --address {master}: {silent}")
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
