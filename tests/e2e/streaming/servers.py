"""Real brokers that go and come back with their data: told to stop, killed, or frozen."""

import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace.core import HeadraceError
from headrace.streaming.broker import Broker
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord
from tests.brokers.kafka import running_kafka
from tests.contract.brokers.nats_servers import running_nats
from tests.contract.redis_servers import NoServerError, RedisServer, running_server
from tests.e2e.streaming.workers import IN, WITHIN_S
from tests.ports import free_port

if TYPE_CHECKING:
    import subprocess

__all__ = ["BY_NAME", "Away", "Feeder", "Site", "fed", "site"]


class Away(StrEnum):
    """How a server goes."""

    STOPPED = "stopped"
    KILLED = "killed"
    FROZEN = "frozen"
    """It keeps its connections, and says nothing."""


class Server(Protocol):
    @property
    def process(self) -> "subprocess.Popen[bytes] | None": ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Site:
    """A broker that runs; an embedded log has no server."""

    url: str
    home: Path
    session_timeout_s: float
    port: int = 0
    server: Server | None = None

    def open(self) -> Broker:
        """A broker, for the caller to close."""
        return open_broker(self.url, home=self.home)

    @contextmanager
    def away(self, how: Away) -> Iterator[None]:
        """While the block runs; then it is there again with its data."""
        server = self.server
        assert server is not None
        process = server.process
        assert process is not None
        match how:
            case Away.STOPPED:
                server.stop()
            case Away.KILLED:
                process.kill()
                process.wait()
            case Away.FROZEN:
                process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if how is Away.FROZEN:
                process.send_signal(signal.SIGCONT)
            else:
                server.start()


def _log(folder: Path) -> Iterator[Site]:
    yield Site(url=f"log://{folder}/log", home=folder, session_timeout_s=1.0)


def _kafka(folder: Path) -> Iterator[Site]:
    with running_kafka(folder / "kafka") as cluster:
        url = f"kafka://{cluster.bootstrap}"
        yield Site(url=url, home=folder, session_timeout_s=6.0, port=cluster.port, server=cluster)


def _nats(folder: Path) -> Iterator[Site]:
    with running_nats() as server:
        yield Site(
            url=server.url, home=folder, session_timeout_s=1.0, port=server.port, server=server
        )


@dataclass(kw_only=True)
class DurableRedis:
    """It has written to its file what it has answered to."""

    redis: RedisServer
    port: int

    @property
    def process(self) -> "subprocess.Popen[bytes] | None":
        return self.redis.process

    def start(self) -> None:
        self.redis.socket.unlink(missing_ok=True)  # of one that was killed
        self.redis.start("--port", str(self.port), "--appendonly", "yes", "--appendfsync", "always")
        until = time.monotonic() + WITHIN_S
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", self.port)) != 0:
                assert time.monotonic() < until, "Redis does not listen"
                time.sleep(0.01)

    def stop(self) -> None:
        self.redis.stop()


def _redis(folder: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        try:
            redis = stack.enter_context(running_server("redis"))
        except NoServerError:  # Valkey comes as a wheel, and keeps its log as Redis does
            redis = stack.enter_context(running_server("valkey"))
        redis.stop()
        server = DurableRedis(redis=redis, port=free_port())
        server.start()
        url = f"redis://127.0.0.1:{server.port}/0"
        yield Site(url=url, home=folder, session_timeout_s=1.0, port=server.port, server=server)


BY_NAME: dict[str, Callable[[Path], AbstractContextManager[Site]]] = {
    "log": contextmanager(_log),
    "kafka": contextmanager(_kafka),
    "nats": contextmanager(_nats),
    "redis": contextmanager(_redis),
}


@contextmanager
def site(name: str) -> Iterator[tuple[Site, Broker]]:
    """A broker of that kind with a topic of its own, as far as it has any of several partitions."""
    with ExitStack() as stack:
        # Short: a path to a Unix socket has some hundred bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hr-far-")))
        found = stack.enter_context(BY_NAME[name](folder))
        broker = found.open()
        stack.callback(broker.close)
        broker.create_topic(IN, partitions=2 if broker.abilities.partitions else 1)
        yield found, broker


class Feeder:
    """Writes numbered records all the time; those that were perhaps not taken are sent again."""

    def __init__(self, where: Site, make: Callable[[int], NewRecord]) -> None:
        self.sent = 0
        self._broker = where.open()
        self._make = make
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write no more; twice is once."""
        self._is_over.set()
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()
        self._broker.close()

    def _run(self) -> None:
        while not self._is_over.wait(0.005):
            some = [self._make(number) for number in range(self.sent, self.sent + 20)]
            try:
                self._broker.send(some)
            except HeadraceError:
                self._is_over.wait(0.1)
            else:
                self.sent += len(some)


@contextmanager
def fed(where: Site, make: Callable[[int], NewRecord]) -> Iterator[Feeder]:
    """A feeder while the block runs."""
    feeder = Feeder(where, make)
    try:
        yield feeder
    finally:
        feeder.stop()
