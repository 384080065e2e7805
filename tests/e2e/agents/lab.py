"""Agents as processes, and what they and their gateways answer."""

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from headrace.control.base.agents_settings import AgentsSettings
from headrace.core.spec.access import TlsSpec
from tests.certificates import Authority, Files
from tests.e2e.control.system import ROW, System

Json = dict[str, Any]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, below those of outgoing connections."""
    found: list[int] = []
    # By chance: tests that run beside this one look for some too.
    for port in random.sample(range(21_000, 31_000), 1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@dataclass(slots=True)
class Agent:
    """`headrace gateway` called `name`, with its Envoy."""

    name: str
    root: Path
    control: str
    files: Files
    ca: Path
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        return self.root / self.name.replace("/", "_")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def log(self) -> Path:
        return self.root / f"{self.name.replace('/', '_')}.log"

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def start(self, *more: str, name: str | None = None, before: tuple[str, ...] = ()) -> None:
        http, grpc, admin = map(str, self.ports)
        command = [
            *(*before, sys.executable, "-m", "headrace.cli", "gateway", "--control", self.control),
            *("--tls-cert", str(self.files.certificate), "--tls-key", str(self.files.key)),
            *("--ca-file", str(self.ca), "--name", self.name if name is None else name),
            *("--dir", str(self.directory), "--host", "127.0.0.1", "--admin-host", "127.0.0.1"),
            *("--http-port", http, "--grpc-port", grpc, "--admin-port", admin),
            *("--drain-timeout-s", "2", *more),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def envoy(self) -> psutil.Process:
        record = json.loads((self.directory / "run" / "gateway.json").read_bytes())
        return psutil.Process(record["pid"])

    def state(self) -> Json:
        """What `/readyz` says; empty while nobody answers."""
        try:
            status, answer = System.call("GET", f"http://127.0.0.1:{self.ports[2]}/readyz")
        except (OSError, urllib.error.URLError):
            return {}
        assert status in {200, 503}, answer
        found: Json = answer
        return found

    def wait_for(self, condition: Callable[[Json], bool], timeout_s: float = 30.0) -> Json:
        deadline = time.monotonic() + timeout_s
        while not (condition(found := self.state()) if self.state() else False):
            assert time.monotonic() < deadline, f"{self.state()}\n{self.log_text()}"
            assert self.process is None or self.process.poll() is None, self.log_text()
            time.sleep(0.05)
        return found

    def wait_ready(self) -> Json:
        return self.wait_for(lambda state: state["ready"])

    def infer(self, name: str, document: object = ROW) -> tuple[int, Any]:
        return System.call("POST", f"http://{self.address}/v2/models/{name}/infer", document)

    def kill(self) -> None:
        """The agent without its Envoy."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, timeout_s: float = 20.0) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(5)
        for process in psutil.process_iter(["cmdline"]):
            if str(self.directory) in " ".join(process.info["cmdline"] or []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@dataclass(slots=True)
class Lab:
    """One control plane without an Envoy of its own, and agents that follow it."""

    system: System
    authority: Authority
    root: Path
    ports: list[int] = field(default_factory=lambda: free_ports(2))
    agents: list[Agent] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports[0]}"

    def start(
        self,
        *endpoints: Json,
        gateway: str = "remote",
        max_behind_s: float = 2.0,
        revoked_file: str = "",
        lost_after_s: float = 30.0,
        **settings: Any,
    ) -> None:
        shown = self.authority.directory / "control.pem"
        files = (
            Files(certificate=shown, key=self.authority.directory / "control-key.pem")
            if shown.exists()
            else self.authority.server("control")
        )
        self.system.start(
            *endpoints,
            gateway=gateway,
            agents=AgentsSettings(
                tls=TlsSpec(
                    certificate_file=str(files.certificate),
                    key_file=str(files.key),
                    client_ca_file=str(self.authority.ca),
                    require_client_certificate=True,
                ),
                port=self.ports[0],
                limits_port=self.ports[1],
                max_behind_s=max_behind_s,
                lost_after_s=lost_after_s,
                revoked_file=revoked_file,
            ),
            **settings,
        )

    def agent(self, name: str, *, files: Files | None = None, ca: Path | None = None) -> Agent:
        found = Agent(
            name=name,
            root=self.root,
            control=self.url,
            files=files or self.authority.client(name),
            ca=ca or self.authority.ca,
        )
        # Each has ports of its own from the first on, started or not.
        taken = {*self.ports, *(port for agent in self.agents for port in agent.ports)}
        found.ports = [port for port in free_ports(3 + len(taken)) if port not in taken][:3]
        self.agents.append(found)
        return found

    def gateways(self) -> dict[str, Json]:
        """As the control plane sees them."""
        return {one["name"]: one for one in self.system.status()["gateway"]["gateways"]}

    def wait_standing(self, name: str, *standings: str, timeout_s: float = 30.0) -> Json:
        def told(status: Json) -> dict[str, Json]:
            return {one["name"]: one for one in status["gateway"]["gateways"]}

        def stands(status: Json) -> bool:
            found = told(status)
            return name in found and found[name]["standing"] in standings

        # As it was then: asked once more, it may have moved on.
        return told(self.system.wait_for(stands, timeout_s))[name]

    def events(self, reason: str) -> list[Json]:
        found = self.system.get("/api/v1/events?limit=1000")["events"]
        return [event for event in found if event["reason"] == reason]

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        self.system.close()
