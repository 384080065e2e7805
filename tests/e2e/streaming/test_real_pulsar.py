"""Streams on Apache Pulsar: workers that are killed, and commands on a topic with partitions.

What they answered is counted by `pulsar_client.py`.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx
import pytest

from headrace.core import ReplicaSettings
from headrace.core.spec.stream_parts import FormatKind, StreamFormatSpec
from headrace.streaming.broker import StartPosition
from headrace.streaming.settings import WorkerSettings, WorkerState
from headrace.testing import models
from tests.brokers.pulsar import Pulsar, running_pulsar
from tests.e2e.streaming import workers
from tests.e2e.streaming.conftest import Start, Streams, lines, rows, wait_for

KILLS: Final = int(os.environ.get("CHAOS_KILLS", "3"))
WORKERS: Final = 2
DRAINS_WITHIN_S: Final = 120.0

pytestmark = [pytest.mark.e2e, pytest.mark.jvm]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulsar]:
    with running_pulsar(tmp_path_factory.mktemp("pulsar")) as running:
        yield running


@pytest.mark.parametrize(
    ("subscription", "partitions"),
    [
        ("key_shared", 1),
        pytest.param("key_shared", 3, marks=pytest.mark.long),
        pytest.param("failover", 1, marks=pytest.mark.long),
        ("failover", 3),
        pytest.param("shared", 3, marks=pytest.mark.long),
    ],
)
def test_killed_workers_lose_nothing_and_keep_the_order_of_keys(
    tmp_path: Path, server: Pulsar, subscription: str, partitions: int
) -> None:
    topic = f"kills-{uuid4().hex[:8]}"
    model = tmp_path / "m.onnx"
    model.write_bytes(models.matmul())
    told = [
        WorkerSettings(
            name="kills",
            broker=f"{server.url}?admin={server.admin}&subscription={subscription}",
            topics=[topic],
            group=topic,
            member=f"m{number}",
            sink=f"{topic}-out",
            dead_letters=f"{topic}-dead",
            model=ReplicaSettings(model_name="m", model_version="1", path=str(model)),
            format=StreamFormatSpec(kind=FormatKind.RAW),
            start=StartPosition.EARLIEST,
            max_batch_size=64,
            home=str(tmp_path),
            uds=str(tmp_path / f"m{number}.sock"),
        )
        for number in range(WORKERS)
    ]
    chance = random.Random(KILLS + partitions)  # noqa: S311  # moments, no secrets
    if partitions > 1:
        path = f"/admin/v2/persistent/public/default/{topic}/partitions"
        httpx.put(server.admin + path, json=partitions).raise_for_status()
    with ExitStack() as stack:
        writer = stack.enter_context(plain_client("write", server.url, topic))
        stack.callback(writer.kill)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begins\n"
        team = [stack.enter_context(workers.running(tmp_path, one)) for one in told]
        for worker in team:
            worker.wait_until(lambda status: status.read > 0 or subscription == "failover")
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.5, 2.0))
            victim = chance.randrange(WORKERS)
            team[victim].kill()
            team[victim] = stack.enter_context(workers.running(tmp_path, told[victim]))
        out, _ = writer.communicate("stop", timeout=60)
        written = json.loads(out)
        wait_for(lambda: backlog(server, topic, partitions) == 0, timeout_s=DRAINS_WITHIN_S)
        for worker in team:
            worker.wait_until(
                lambda status: (
                    status.state is WorkerState.RUNNING
                    and [partition.lag_records for partition in status.partitions]
                    == [0] * partitions
                )
            )
            assert worker.stop() == 0

    with plain_client("read", server.url, f"{topic}-out") as reader:
        out, _ = reader.communicate(timeout=120)
    seen = json.loads(out)
    print(f"\n{subscription}, {partitions} partitions: {KILLS} kills, {written}, {seen}")  # noqa: T201  # the figure
    assert seen["different"] == written["records"]
    assert subscription == "shared" or seen["out_of_order"] == 0


def test_dead_letters_and_replays_of_a_topic_with_partitions(
    streams: Streams, start: Start, server: Pulsar
) -> None:
    name = f"s{uuid4().hex[:8]}"
    url = f"{server.url}?admin={server.admin}&subscription=key_shared"
    (streams.shell.folder / "mlp.onnx").write_bytes(models.mlp())
    spec = streams.spec(
        "version: 1\nstreams:\n"
        f"  - {{name: {name}, model: ./mlp.onnx, sink: {{topic: {name}-out}}, workers: 2,\n"
        f"     source: {{broker: '{url}', topics: [{name}]}}}}\n"
    )
    broker = ("--broker", url)

    def read(topic: str) -> list[str]:
        done = streams.shell.run("stream", "read", topic, *broker)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    sent = lines([*rows(20), {"id": "bad", "input": "none"}, {"id": "worse", "input": []}])
    arguments = ("stream", "send", name, *broker, "--partitions", "3", "--key", "id")
    assert streams.shell.run(*arguments, stdin=sent).returncode == 0
    assert len(read(name)) == 22
    start("stream", "up", "-f", str(spec))
    wait_for(lambda: len(read(f"{name}-out")) == 20)

    letters = streams.json("dlq", "list", name, "-f", str(spec))
    assert {letter["key"] for letter in letters} == {"bad", "worse"}
    again = streams.json("dlq", "redrive", name, "-f", str(spec), "--limit", "1")
    assert again["redriven"] == 1
    wait_for(lambda: len(streams.json("dlq", "list", name, "-f", str(spec))) == 2)
    replayed = streams.json(
        *("replay", name, "-f", str(spec), "--from", "-1h", "--to", f"{name}-again")
    )
    assert replayed["answered"] == 20
    assert len(read(f"{name}-again")) == 20


def backlog(server: Pulsar, topic: str, partitions: int) -> int:
    """Entries of the topic that its group has not acknowledged, as Pulsar says."""
    path = "partitioned-stats" if partitions > 1 else "stats"
    stats = json.loads(
        server.get(f"persistent/public/default/{topic}/{path}?getPreciseBacklog=true")
    )
    return int(stats["subscriptions"][topic]["msgBacklog"])


def plain_client(*arguments: str) -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("pulsar_client.py")
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
