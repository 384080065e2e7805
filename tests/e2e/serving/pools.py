"""Real copies of a pool, and models that misbehave."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from headrace.core import PoolReplicaSettings, ReplicaSettings
from headrace.serving.telemetry.report import HostedReport, PoolReport

PLAIN = """
import numpy as np
class Model:
    inputs = {{"x": ("FP32", [-1, 2])}}
    outputs = {{"y": ("FP32", [-1, 2])}}
    batched = True
    {load}
    def infer(self, inputs):
        return {{"y": inputs["x"] * {factor}}}
"""


def python_model(folder: Path, name: str, *, first: str = "", load: str = "", by: int = 2) -> Path:
    """A model in plain Python: `first` runs when it is imported, `load` when it is loaded."""
    file = folder / f"{name}.py"
    method = f"def load(self, folder): {load}" if load else ""
    file.write_text(first + PLAIN.format(load=method, factor=by))
    return file


def entry(name: str, path: Path, *, version: str = "1", **settings: Any) -> ReplicaSettings:
    told = {"model_name": name, "model_version": version, "path": str(path), **settings}
    return msgspec.convert(told, ReplicaSettings)


@dataclass(kw_only=True)
class PoolCopy:
    """A running copy of a pool, asked over its Unix socket."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    socket: str
    port: int
    log: Path

    def declare(self, *models: ReplicaSettings) -> PoolReport:
        answer = self.client.put("/internal/models", content=msgspec.json.encode(models))
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=PoolReport)

    def report(self) -> PoolReport:
        return msgspec.json.decode(self.client.get("/internal/models").content, type=PoolReport)

    def model(self, name: str, version: str = "1") -> HostedReport:
        models = self.report().models
        return next(one for one in models if (one.model, one.version) == (name, version))

    def infer(
        self, name: str, rows: Sequence[Sequence[float]] = ((1, 2),), **options: Any
    ) -> httpx.Response:
        tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
        path = f"/v2/models/{name}/infer"
        return self.client.post(path, json={"inputs": [tensor]}, **options)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def rss_bytes(self) -> int:
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running_pool(folder: Path, **settings: Any) -> Iterator[PoolCopy]:
    """A copy of a pool that listens; it is stopped by its pid."""
    path = str(folder / "pool.sock")
    told = msgspec.convert({"name": "small", "uds": path, **settings}, PoolReplicaSettings)
    file, log = folder / "pool.json", folder / "pool.log"
    file.write_bytes(msgspec.json.encode(told))
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace.serving", "--settings", str(file)],
            stderr=stderr,
            stdout=stderr,
        )
    transport = httpx.HTTPTransport(uds=path)
    with httpx.Client(transport=transport, base_url="http://pool", timeout=30) as client:
        copy = PoolCopy(process=process, client=client, socket=path, port=told.port or 0, log=log)
        try:
            _wait_until_it_listens(copy)
            yield copy
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _wait_until_it_listens(copy: PoolCopy) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and copy.process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:  # httpx leaks a socket that is refused
            if probe.connect_ex(copy.socket) == 0:
                return
        time.sleep(0.02)
    message = f"the pool did not start:\n{copy.log_text()}"
    raise AssertionError(message)
