"""A Spark of its own master and worker, on free ports of loopback."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.processes import free_ports
from tests.e2e.jobs.on_engines import end, until_logged

CORES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SparkCluster:
    """`address`: as `--address` takes it. `worker`: the process whose descendants run shards."""

    address: str
    worker: int


@contextlib.contextmanager
def spark_cluster(folder: Path) -> Iterator[SparkCluster]:
    """It runs within the block; its processes, and no others, are ended after it."""
    port, page, other_page = map(str, free_ports(3))
    address = f"spark://127.0.0.1:{port}"
    here = ("--host", "127.0.0.1", "--webui-port")
    work = ("--cores", str(CORES), "--memory", "2g", "--work-dir", str(folder))
    with (
        _running("master.Master", [*here, page, "--port", port], folder / "master.log") as master,
        _running(
            "worker.Worker", [*here, other_page, *work, address], folder / "worker.log"
        ) as own,
    ):
        until_logged(master, folder / "master.log", "I have been elected leader")
        until_logged(own, folder / "worker.log", "Successfully registered with master")
        yield SparkCluster(address=address, worker=own.pid)


@contextlib.contextmanager
def _running(name: str, arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    spec = find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    with log.open("wb") as out:
        process = subprocess.Popen(
            [home / "bin" / "spark-class", f"org.apache.spark.deploy.{name}", *arguments],
            env={**os.environ, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        end(process)
