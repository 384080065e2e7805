"""A Ray cluster on free ports of loopback, apart from any other that runs on the machine."""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.processes import free_ports
from tests.e2e.jobs.on_engines import end, until_logged

RAY = Path(sys.executable).with_name("ray")
CORES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """`address`: as `--address` takes it. `pid`: all its processes descend from it.

    `environment`: for commands: the cluster's token, and where they look for what `auto` means.
    """

    address: str
    pid: int
    environment: Mapping[str, str]


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """It runs within the block; its processes, and no others, are ended after it."""
    port, client = free_ports(2)
    # Ray's sockets lie there, and the name of a socket has no more than 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        folder = Path(name)
        log = folder / "head.log"
        line = [
            *(
                str(RAY),
                "start",
                "--head",
                "--block",
                "--node-ip-address=127.0.0.1",
                f"--port={port}",
            ),
            *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
            *(f"--num-cpus={CORES}", "--include-dashboard=false", "--disable-usage-stats"),
            "--object-store-memory=100000000",
        ]
        environment = {
            "RAY_TMPDIR": name,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                line,
                env={**os.environ, **environment, "RAY_ADDRESS": ""},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            until_logged(process, log, "Ray runtime started")
            yield RayCluster(
                address=f"127.0.0.1:{port}",
                pid=process.pid,
                environment=environment,
            )
        finally:
            end(process)
