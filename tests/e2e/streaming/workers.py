"""Real stream workers on a real log, stopped by pid whatever happens."""

import contextlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from headrace.core import ReplicaSettings
from headrace.streaming.broker import Broker, StartPosition
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord
from headrace.streaming.settings import EXIT_STALLED, StreamStatus, WorkerSettings, WorkerState
from tests.contract.brokers.rig import everything

IN, OUT, DEAD, GROUP = "in", "out", "dead", "readers"
WITHIN_S = 60.0


_DOUBLE = """\
import time

import numpy as np


class Double:
    inputs = {{"x": ("FP32", [-1, 2])}}
    outputs = {{"y": ("FP32", [-1, 2])}}
    batched = True

    def infer(self, inputs):
        if inputs["x"][0, 1] == {mark}:  # not as it is warmed up
            time.sleep({delay_s})
        return {{"y": inputs["x"] * np.float32(2)}}
"""
MARK = 7.0


def double(folder: Path, *, delay_s: float = 0.0) -> Path:
    """A model of two numbers, which takes so long if the second one is `MARK`."""
    path = folder / "double.py"
    path.write_text(_DOUBLE.format(mark=MARK, delay_s=delay_s))
    return path


def features_spec(spend: str, datatype: str) -> str:
    """A view `spending` of cards: the last amount, and a sum of this name."""
    return f"""
version: 1
entities:
  - {{name: card, join_key: card, datatype: INT64}}
feature_views:
  - name: spending
    entities: [card]
    source: {{path: none.parquet}}
    features: [{{name: last, datatype: {datatype}}}, {{name: {spend}, datatype: {datatype}}}]
feature_services:
  - {{name: fraud, features: [spending]}}
"""


def two_numbers(number: int, **more: object) -> NewRecord:
    """A record for it, with its number as its key."""
    value = msgspec.json.encode({"x": [float(number), MARK], **more})
    return NewRecord(topic=IN, key=b"%d" % number, value=value)


@dataclass(kw_only=True)
class Worker:
    """A worker's process, and what it was told."""

    settings: WorkerSettings
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        transport = httpx.HTTPTransport(uds=self.settings.uds)
        self.client = httpx.Client(transport=transport, base_url="http://worker", timeout=5)

    def listens(self) -> bool:
        """Asked first, as httpx leaves a Unix socket open that it cannot connect."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.settings.uds) == 0

    def status(self) -> StreamStatus:
        body = self.client.get("/internal/status").content
        return msgspec.json.decode(body, type=StreamStatus)

    def metrics(self) -> str:
        return self.client.get("/metrics").text

    def wait_until(self, holds: Callable[[StreamStatus], bool]) -> StreamStatus:
        until = time.monotonic() + WITHIN_S
        status = None
        while time.monotonic() < until:
            if self.process.poll() == EXIT_STALLED:  # the control plane starts it again
                self.process = start(self.log.parent, self.settings).process
            assert self.process.poll() is None, self.log_text()
            if self.listens():
                with contextlib.suppress(httpx.TransportError):  # the process ends
                    status = self.status()
                    if holds(status):
                        return status
            time.sleep(0.02)
        message = f"not within {WITHIN_S} s: {status}\n{self.log_text()}"
        raise AssertionError(message)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(45)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


def settings(folder: Path, model: Path | None, **changes: Any) -> WorkerSettings:
    said: dict[str, Any] = {
        "name": "s",
        "broker": f"log://{folder}/log",
        "topics": [IN],
        "sink": OUT,
        "dead_letters": DEAD,
        "group": GROUP,
        "member": "one",
        "model": None
        if model is None
        else ReplicaSettings(model_name="m", model_version="1", path=str(model)),
        "start": StartPosition.EARLIEST,
        "session_timeout_s": 2.0,
        "home": str(folder),
        **changes,
    }
    return WorkerSettings(uds=str(folder / f"{said['member']}.sock"), **said)


def start(folder: Path, told: WorkerSettings) -> Worker:
    file = folder / f"{told.member}.json"
    file.write_bytes(msgspec.json.encode(told))
    log = folder / f"{told.member}.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace.streaming", "--settings", str(file)],
            stderr=stderr,
            stdout=stderr,
        )
    return Worker(settings=told, process=process, log=log)


@contextmanager
def running(folder: Path, told: WorkerSettings) -> Iterator[Worker]:
    """A worker; it is ended, and its log must be free of tracebacks."""
    worker = start(folder, told)
    try:
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait(10)
        worker.client.close()
    assert "Traceback" not in worker.log_text()


def killed_at_random(
    folder: Path, told: WorkerSettings, broker: Broker, *, kills: int, seed: int
) -> Iterator[int]:
    """Run a worker that is killed so often, then one to the end; yield the lag after each kill."""
    chance = random.Random(seed)  # noqa: S311  # no secret
    for _ in range(kills):
        with running(folder, told) as worker:
            worker.wait_until(lambda s: s.answered > 0 or s.state is WorkerState.RUNNING)
            time.sleep(chance.uniform(0.0, 0.2))
            worker.kill()
        yield lag(broker)
    with running(folder, told) as worker:
        worker.wait_until(lambda s: s.state is WorkerState.RUNNING)  # all may be done before
        wait_until_done(broker)
        assert worker.stop() == 0


def opened(folder: Path, *, partitions: int = 1) -> Broker:
    """A log with the topic `IN`."""
    broker = open_broker(f"log://{folder}/log", home=folder)
    broker.create_topic(IN, partitions=partitions)
    return broker


def keys(broker: Broker, topic: str) -> Counter[int]:
    """How often each number is the key of a record of a topic."""
    return Counter(int(record.key or b"") for record in everything(broker, topic))


def numbered(numbers: range, **more: object) -> list[NewRecord]:
    return [two_numbers(number, **more) for number in numbers]


def lag(broker: Broker) -> int:
    """How many records no member has done."""
    reached = broker.committed(GROUP, IN)
    return sum(end - reached.get(partition, 0) for partition, (_, end) in broker.ends(IN).items())


def wait_until_done(broker: Broker) -> None:
    until = time.monotonic() + WITHIN_S
    while lag(broker):
        assert time.monotonic() < until, f"{lag(broker)} records are not done"
        time.sleep(0.02)
