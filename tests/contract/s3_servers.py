"""S3 servers of the tests' own on loopback, ended by their pid."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import GenericError
from obstore.store import S3Store

from tests.ports import free_port

KEY: Final = "headrace"
SECRET: Final = "open-sesame"  # noqa: S105  # of a server that lives for a test run
READY_WITHIN_S: Final = 30.0
_ROOT: Final = Path(__file__).parents[2]


class NoServerError(Exception):
    """There is no such server here; the message says why."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server, at `host:port`; `heeds_conditions`: of writes, as Amazon's does."""

    port: int
    heeds_conditions: bool
    pid: int
    host: str = "127.0.0.1"

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What a process needs to use it, maybe by a proxy at another port."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{self.host}:{port or self.port}",
        }

    def store(self, bucket: str) -> S3Store:
        """A plain client, to look and to spoil."""
        return S3Store(
            bucket,
            endpoint=f"http://{self.host}:{self.port}",
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )


@contextmanager
def running_moto(host: str = "127.0.0.1") -> Iterator[S3Server]:
    """moto's server at an address of this machine until the block ends.

    Raises:
        NoServerError: It is not installed.
    """
    python = _ROOT / ".venv-kube" / "bin" / "python"
    if not (python.parent / "moto_server").exists():
        raise NoServerError("no moto here; `make setup ENV=kube` installs it")
    port = free_port()
    process = subprocess.Popen(  # noqa: S603  # ours
        [python, Path(__file__).with_name("moto_in_order.py"), str(port), host],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, process, host)
        yield S3Server(port=port, heeds_conditions=True, pid=process.pid, host=host)
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def running_radosgw() -> Iterator[S3Server]:
    """Ceph's gateway on a SQLite file until the block ends.

    It checks signatures as Amazon does, but ignores conditions of writes; and of what was uploaded
    in parts it answers with the last one again and again (seen in 18.2.7).

    Raises:
        NoServerError: It is not installed.
    """
    program, admin = (_rados_program(name) for name in ("radosgw", "radosgw-admin"))
    with tempfile.TemporaryDirectory(prefix="hr-rgw-", ignore_cleanup_errors=True) as name:
        data = Path(name)
        port = free_port()
        (data / "ceph.conf").write_text(
            "[global]\n"
            "rgw backend store = dbstore\n"
            "rgw config store = dbstore\n"
            f"dbstore config uri = file:{data}/config.db\n"
            f"dbstore db dir = {data}\n"
            f"rgw data = {data}\n"
            f"run dir = {data}\n"
            f"log file = {data}/log\n"
            "no mon config = true\n"
            f"rgw frontends = beast endpoint=127.0.0.1:{port}\n"
        )
        options = ["-c", str(data / "ceph.conf"), "-n", "client.admin", "--no-mon-config"]
        user = ["user", "create", "--uid", "t", "--display-name", "t"]
        keys = ["--access-key", KEY, "--secret-key", SECRET]
        subprocess.run(  # noqa: S603  # ours
            [admin, *options, *user, *keys], check=True, capture_output=True, timeout=60
        )
        with (data / "out").open("wb") as out:
            process = subprocess.Popen([program, *options, "-f"], stdout=out, stderr=out)  # noqa: S603  # ours
        try:
            wait_for(port, process)
            yield S3Server(port=port, heeds_conditions=False, pid=process.pid)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
            process.wait()


def _rados_program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NoServerError("no radosgw here; Debian's package of that name has it")
    return found


def make_bucket(server: S3Server, name: str) -> None:
    """Make a bucket."""
    # A client that takes the bucket for a part of the host's name puts `/NAME`: that makes one.
    plain = S3Store(
        "any",
        endpoint=f"http://{server.host}:{server.port}",
        virtual_hosted_style_request=True,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    with suppress(GenericError):  # the answer is no object's, so it has no etag
        obstore.put(plain, name, b"", use_multipart=False)


def wait_for(port: int, process: subprocess.Popen[bytes], host: str = "127.0.0.1") -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.05)
        else:
            return
