"""A Postgres server of the tests' own: a cluster in a temporary directory, ended by its pid."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg

from tests.ports import free_port

USER: Final = "headrace"
PASSWORD: Final = "open/sesame:%"  # noqa: S105  # of a server that lives for a test run
READY_WITHIN_S: Final = 30.0
_INSTALL: Final = Path(__file__).parents[2] / "scripts" / "setup.sh"
_INSTALL_WITHIN_S: Final = 300.0
_FAST_SHUTDOWN: Final = signal.SIGINT


class NoPostgresError(Exception):
    """There is no server here, and none can be installed; the message says why."""


@dataclass(kw_only=True)
class PostgresServer:
    """A running server: no password over its socket, one over TCP."""

    binaries: Path
    directory: Path
    port: int
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=count)

    def new_database(self, encoding: str = "UTF8") -> str:
        """A fresh database; its URL."""
        name = f"test_{next(self._numbers)}"
        options = f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        return f"postgresql+psycopg://{USER}@/{name}?host={self.directory}&port={self.port}"

    def tcp_url(self, password: str, database: str = "postgres") -> str:
        return f"postgresql://{USER}:{quote(password, safe='')}@{self.host}:{self.port}/{database}"

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host=str(self.directory), port=self.port, user=USER, dbname="postgres", autocommit=True
        )

    def start(self) -> None:
        command: list[str | Path] = [self.binaries / "postgres", "-D", self.directory / "data"]
        options = {
            "unix_socket_directories": str(self.directory),
            "listen_addresses": self.host,
            "port": str(self.port),
            "fsync": "off",
            "max_connections": "50",
            "shared_buffers": "16MB",
        }
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with (self.directory / "log").open("ab") as log:
            uid, gid = _owner()
            self.process = subprocess.Popen(  # noqa: S603  # ours
                command, stdout=log, stderr=log, cwd=self.directory, user=uid, group=gid
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline, "the server does not come up"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(_FAST_SHUTDOWN)
            try:
                self.process.wait(timeout=20)
            finally:
                self.process.kill()
                self.process.wait()
                self.process = None


@contextmanager
def running_postgres(host: str = "127.0.0.1") -> Iterator[PostgresServer]:
    """A server at an address of this machine, for all of its network, until the block ends.

    Raises:
        NoPostgresError: There can be none.
    """
    binaries = _find_binaries() or _install()
    # Not pytest's tmp_path: that is closed to other users, and too long for a socket.
    with tempfile.TemporaryDirectory(prefix="hr-pg-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        server = PostgresServer(binaries=binaries, directory=directory, port=free_port(), host=host)
        _make_cluster(server)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _make_cluster(server: PostgresServer) -> None:
    secret = server.directory / "password"
    secret.write_text(PASSWORD)
    uid, gid = _owner()
    if uid is not None and gid is not None:
        for path in (server.directory, secret):
            os.chown(path, uid, gid)
    command = [str(server.binaries / "initdb"), "-D", str(server.directory / "data"), "--no-sync"]
    command += ["--username", USER, "--pwfile", str(secret), "--auth-local", "trust"]
    command += ["--auth-host", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
    subprocess.run(  # noqa: S603  # ours
        command, check=True, capture_output=True, cwd=server.directory, user=uid, group=gid
    )

    with (server.directory / "data" / "pg_hba.conf").open("a") as file:
        file.write(f"host all all {server.host}/16 scram-sha-256\n")


def _owner() -> tuple[int | None, int | None]:
    """Whom the server runs as, who owns its files: it refuses to be root. None for who asks."""
    if os.geteuid() != 0:
        return None, None
    names = ("postgres", "nobody")
    found = next(entry for entry in pwd.getpwall() if entry.pw_name in names)
    return found.pw_uid, found.pw_gid


def _find_binaries() -> Path | None:
    packaged = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3])
    )
    on_path = shutil.which("initdb")
    found = packaged[-1] if packaged else Path(on_path).resolve() if on_path else None
    return None if found is None else found.parent


def _install() -> Path:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoPostgresError("no Postgres here; scripts/setup.sh postgres needs root and apt")
    try:
        subprocess.run(  # noqa: S603  # ours
            [_INSTALL, "postgres"], check=True, capture_output=True, timeout=_INSTALL_WITHIN_S
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise NoPostgresError(f"Postgres cannot be installed: {error}") from error
    found = _find_binaries()
    if found is None:
        raise NoPostgresError("apt installed no Postgres")
    return found
