"""Real replica processes for tests, stopped by pid whatever happens."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from headrace.core import ReplicaSettings
from tests.ports import free_port

READY_WITHIN_S = 30.0


@dataclass(kw_only=True)
class Replica:
    """A running replica: where it listens, and its process."""

    port: int
    settings: ReplicaSettings
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout_s: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def rss_bytes(self) -> int:
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(folder: Path, model: Path, **settings: Any) -> Replica:
    port = free_port()
    wanted: dict[str, Any] = {
        "model_name": "m",
        "model_version": "1",
        "path": str(model),
        "port": port,
    }
    wanted.update(settings)
    told = msgspec.convert(wanted, ReplicaSettings)
    file = folder / f"replica-{port}.json"
    file.write_bytes(msgspec.json.encode(told))
    log = folder / f"replica-{port}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace.serving", "--settings", str(file)],
            stderr=stderr,
            stdout=stderr,
        )
    return Replica(port=port, settings=told, process=process, log=log)


def wait_until_ready(replica: Replica) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        if replica.process.poll() is not None:
            break
        try:
            if httpx.get(f"{replica.url}/v2/health/ready", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    message = f"the replica did not become ready:\n{replica.log_text()}"
    raise AssertionError(message)


def stop(replica: Replica, *, with_signal: int = signal.SIGTERM) -> int:
    if replica.process.poll() is None:
        replica.process.send_signal(with_signal)
    try:
        return replica.process.wait(20)
    except subprocess.TimeoutExpired:
        replica.process.kill()
        return replica.process.wait(10)


@contextmanager
def running(folder: Path, model: Path, **settings: Any) -> Iterator[Replica]:
    """A replica that is ready; it is stopped, and its log must be free of tracebacks."""
    replica = start(folder, model, **settings)
    try:
        wait_until_ready(replica)
        yield replica
    finally:
        stop(replica)
