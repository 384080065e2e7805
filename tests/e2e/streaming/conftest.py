"""Streams as people run them: the command, an embedded log, a real model."""

import json
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from headrace.control.base.settings import ControlFile, read_control_file
from headrace.core import NotFoundError
from headrace.streaming.brokers.log.broker import LogBroker
from headrace.streaming.records import Record
from tests.brokers.kafka import KafkaCluster, running_kafka
from tests.e2e.cli.conftest import PORTS, MakeShell, Shell, make_shell

__all__ = ["make_shell"]

PATIENCE_S = 60.0
WIDTH = 32


def wait_for(what: Callable[[], Any], *, timeout_s: float = PATIENCE_S) -> Any:
    """What `what` says as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not true after {timeout_s:g} s; last: {found!r}"
        time.sleep(0.1)
    return found


def rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    chance = np.random.default_rng(first + 1)
    return [
        {"id": f"c{first + i}", "input": chance.random(WIDTH).round(3).tolist()}
        for i in range(count)
    ]


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@dataclass(slots=True)
class Streams:
    """A folder with a model and an embedded log."""

    shell: Shell

    @property
    def broker(self) -> str:
        return "log:demo"

    def run(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
        """Run a command that has to succeed."""
        done = self.shell.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done

    def send(
        self,
        records: list[dict[str, Any]],
        *,
        topic: str = "in",
        raw: bytes = b"",
        partitions: int = 2,
    ) -> None:
        send = ("stream", "send", topic, "--broker", self.broker)
        if records:
            options = ("--key", "id", "--partitions", str(partitions))
            self.run(*send, *options, stdin=lines(records))
        if raw:
            self.run(*send, stdin=raw)

    def records(self, topic: str) -> list[Record]:
        """All of a topic; nothing while it is not there."""
        broker = LogBroker(self.shell.home / "streams" / "demo")
        try:
            after = {partition: first for partition, (first, _) in broker.ends(topic).items()}
            return broker.read(topic, after=after, max_records=1_000_000)
        except NotFoundError:
            return []
        finally:
            broker.close()

    def count(self, topic: str) -> int:
        done = self.shell.run("stream", "read", topic, "--broker", self.broker)
        return len(done.stdout.splitlines()) if done.returncode == 0 else 0

    def answers(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.records(topic)]

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run("stream", *arguments, "--json").stdout)

    def up(self) -> ControlFile:
        """Start a control plane for the spec."""
        self.run("up", "headrace.yaml", "--detach", *PORTS)
        return self.control()

    def apply(self, text: str, *options: str) -> str:
        """Apply a spec, and return what is told of it."""
        self.spec(text)
        return self.run("apply", "-f", "headrace.yaml", *options).stderr

    def control(self) -> ControlFile:
        found = read_control_file(self.shell.home)
        assert found is not None
        return found

    def metrics(self) -> str:
        with urllib.request.urlopen(self.control().metrics_url, timeout=10) as answer:  # noqa: S310  # ours
            text: str = answer.read().decode()
        return text

    def view(self, name: str) -> Any:
        return self.json("status", name)

    def is_running(self, *names: str) -> bool:
        return all(self.view(name)["state"] == "running" for name in names)

    def pids(self, name: str = "own") -> list[int]:
        return [member["pid"] for member in self.view(name)["members"]]

    def expected(self, records: list[dict[str, Any]]) -> Any:
        """What the model says, asked without any of this."""
        session = onnxruntime.InferenceSession(str(self.shell.folder / "mlp.onnx"))
        name = session.get_inputs()[0].name
        inputs = np.asarray([record["input"] for record in records], np.float32)
        return session.run(None, {name: inputs})[0]

    def spec(self, text: str) -> Path:
        path = self.shell.folder / "headrace.yaml"
        path.write_text(text)
        return path


@pytest.fixture
def streams(make_shell: MakeShell) -> Streams:
    return Streams(make_shell())


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with running_kafka(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, as sockets in it need one."""
    with tempfile.TemporaryDirectory(prefix="hr-") as name:
        yield Path(name)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(streams: Streams) -> Iterator[Start]:
    """Starts commands that are ended with the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        running.append(streams.shell.start(*arguments))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def workers(pid: int) -> list[int]:
    """Those that are stream workers."""
    return [child for child in children(pid) if is_worker(child)]


def is_worker(pid: int) -> bool:
    try:
        return b"headrace.streaming" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
