"""One control plane as a process, what it started, and requests to it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from headrace.control import ControlFile, ControlSettings, read_control_file
from headrace.control.auth.home_token import read_home_token
from tests.e2e.ordinary_user import OrdinaryUser

ROW = {"inputs": [{"name": "input", "shape": [1, 32], "datatype": "FP32", "data": [0.5] * 32}]}
"""A request that `headrace.testing.models.mlp` answers."""


@dataclass(slots=True)
class System:
    """A control plane on `home`; `close` ends whatever still runs there."""

    home: Path
    user: OrdinaryUser = field(default_factory=lambda: OrdinaryUser(os.geteuid()))
    process: subprocess.Popen[bytes] | None = None
    _starts: int = 0

    def start(self, *endpoints: dict[str, Any], **settings: Any) -> None:
        """Start a control plane; without endpoints it goes on with the stored state."""
        self._starts += 1
        path = self.home.parent / f"settings-{self._starts}.json"
        path.write_bytes(msgspec.json.encode(self.settings(*endpoints, **settings)))
        self.user.own(self.home.parent)
        command = self.user.command(
            sys.executable, "-m", "headrace.control", "--settings", str(path)
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def settings(self, *endpoints: dict[str, Any], **settings: Any) -> ControlSettings:
        spec = {"version": 1, "endpoints": list(endpoints)} if endpoints else None
        spec = settings.pop("spec", spec)
        defaults: dict[str, Any] = {
            "home": str(self.home),
            "spec": spec,
            "http_port": 0,
            "grpc_port": 0,
            "metrics_port": 0,
            "admin_port": 0,
            "drain_timeout_s": 5.0,
            "allow_code": True,
        }
        return ControlSettings(**{**defaults, **settings})

    @property
    def log(self) -> Path:
        return self.home.parent / "control.log"

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def where(self) -> ControlFile:
        found = read_control_file(self.home)
        assert found is not None, self.log_text()
        return found

    def where_was(self) -> str:
        """The gateway's address, also while no control plane runs."""
        content = (self.home / "run" / "control.json").read_bytes()
        return msgspec.json.decode(content, type=ControlFile).http_url

    def token(self) -> str:
        return read_home_token(self.home)

    def get(self, path: str) -> Any:
        return self.manage("GET", path)[1]

    def post(self, path: str, document: object = None) -> tuple[int, Any]:
        return self.manage("POST", path, document)

    def manage(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        """What the management API answers to the home's owner."""
        return self.call(method, self.where().admin_url + path, document, token=self.token())

    def status(self) -> Any:
        return self.get("/api/v1/status")

    def infer(self, name: str, document: object = ROW) -> tuple[int, Any]:
        return self.call("POST", f"{self.where().http_url}/v2/models/{name}/infer", document)

    @staticmethod
    def call(method: str, url: str, document: object = None, *, token: str = "") -> tuple[int, Any]:
        body = None if document is None else json.dumps(document).encode()
        headers = {"content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310  # loopback
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  # as above
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read()
        try:
            return status, json.loads(text or b"null")
        except ValueError:
            return status, text.decode()

    def wait_ready(self, timeout_s: float = 60.0) -> Any:
        return self.wait_for(lambda status: status["ready"], timeout_s)

    def wait_for(self, condition: Callable[[Any], bool], timeout_s: float = 60.0) -> Any:
        """The status once `condition` holds for it."""
        deadline = time.monotonic() + timeout_s
        status: Any = None
        while time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, self.log_text()
            with contextlib.suppress(OSError, AssertionError, urllib.error.URLError):
                status = self.status()
                if condition(status):
                    return status
            time.sleep(0.05)
        raise AssertionError(f"still {status}\n{self.log_text()}")

    def kill_control(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def end_control(self, timeout_s: float = 30.0) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this home, the control plane excepted."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.home) in line and "headrace.control" not in line:
                found.append(process)
        return found

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
            self.process.kill()
            self.process.wait(5)
        found = read_control_file(self.home)
        if found is not None:
            os.kill(found.pid, signal.SIGKILL)
        self.kill_processes()

    def gateway(self) -> psutil.Process:
        """The process of Envoy that answers; others check configurations for a moment."""
        return psutil.Process(self.status()["gateway"]["pid"])

    def kill_processes(self) -> list[psutil.Process]:
        """Kill everything that runs for this home, the control plane excepted."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return processes


def replicas(status: Any, name: str) -> list[Any]:
    """All replicas of an endpoint in a status."""
    endpoint = next(e for e in status["endpoints"] if e["name"] == name)
    return [replica for revision in endpoint["revisions"] for replica in revision["replicas"]]


@dataclass(slots=True)
class Traffic:
    """Requests one after the other from several threads, and what came back."""

    system: System
    name: str
    statuses: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        url = f"{self.system.where().http_url}/v2/models/{self.name}/infer"
        while not self._stop.is_set():
            status, answer = self.system.call("POST", url, ROW)
            self.statuses.append(status)
            if status == 200:
                self.versions.append(answer["model_version"])
            time.sleep(0.005)

    @contextlib.contextmanager
    def flowing(self, threads: int = 4) -> Iterator["Traffic"]:
        workers = [threading.Thread(target=self.run) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield self
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    @property
    def failures(self) -> list[int]:
        return [status for status in self.statuses if status != 200]
