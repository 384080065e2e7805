"""A disk is full under a stream that runs: it says so, waits, and goes on when there is room."""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from headrace.core import SystemClock
from headrace.core.spec.stream_parts import (
    StreamFormatSpec,
    StreamOutputSpec,
    StreamWindowSpec,
    StreamWindowsSpec,
)
from headrace.streaming.broker import Delivery
from headrace.streaming.records import NewRecord
from headrace.streaming.settings import StreamStatus, WorkerState
from headrace.testing import models
from tests.contract.brokers.rig import everything
from tests.e2e.streaming.servers import site
from tests.e2e.streaming.workers import (
    DEAD,
    IN,
    OUT,
    double,
    keys,
    numbered,
    opened,
    running,
    settings,
    wait_until_done,
)

pytestmark = pytest.mark.e2e

FILLER = "filler"


@contextmanager
def small_disk(path: Path, *, size_bytes: int) -> Iterator[Path]:
    """A disk of its own at `path`."""
    path.mkdir()
    options = f"size={size_bytes}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:  # ours
        pytest.skip("no file system can be mounted here, so no disk can be full")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # noqa: S607  # ours


def fill(disk: Path) -> None:
    """Take all the room there is."""
    with (disk / FILLER).open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def free(disk: Path) -> None:
    (disk / FILLER).unlink()


@pytest.mark.parametrize("delivery", Delivery)
def test_a_log_whose_disk_is_full_is_waited_for_and_loses_and_repeats_nothing(
    folder: Path, delivery: Delivery
) -> None:
    with small_disk(folder / "log", size_bytes=24 << 20) as disk:
        broker = opened(folder, partitions=2)
        broker.send(numbered(range(2000), pad="x" * 2000))
        told = settings(
            folder,
            double(folder),
            delivery=delivery,
            max_batch_size=16,
            output=StreamOutputSpec(fields=["pad"]),
            paused=True,
        )
        with running(folder, told) as worker:
            worker.wait_until(lambda s: s.state is WorkerState.PAUSED)
            fill(disk)
            worker.client.post("/internal/resume")
            full = worker.wait_until(lambda s: "no space is left" in s.problem)
            free(disk)
            wait_until_done(broker)
            worker.wait_until(lambda s: s.problem == "")
            assert worker.stop() == 0
        found, dead = keys(broker, OUT), everything(broker, DEAD)
        broker.close()

    assert full.state in {WorkerState.RETRYING, WorkerState.RECONNECTING}
    assert str(folder / "log") in full.problem
    assert found == Counter(range(2000))
    assert dead == []


@pytest.mark.long
def test_windows_go_on_where_their_disk_is_full_and_are_kept_when_there_is_room(
    folder: Path,
) -> None:
    with small_disk(folder / "state", size_bytes=512 << 10) as disk:
        broker = opened(folder)
        windows = StreamWindowsSpec(
            windows=[StreamWindowSpec(name="n", size_s=3600.0, key="n")],
            state=str(disk),
            checkpoint_s=0.05,
        )
        scorer = folder / "m.onnx"
        scorer.write_bytes(models.matmul())
        told = settings(
            folder,
            scorer,
            windows=windows,
            format=StreamFormatSpec(columns={"x": ["amount", "m", "n", "k"]}),
        )
        at_s = SystemClock().now()
        sent = 0

        def send(count: int) -> int:
            nonlocal sent
            some = [
                {"n": number, "amount": 1.0, "m": 0.0, "k": 0.0}
                for number in range(sent, sent + count)
            ]
            broker.send(
                [
                    NewRecord(topic=IN, key=b"k", value=msgspec.json.encode(one), timestamp_s=at_s)
                    for one in some
                ]
            )
            sent += count
            return sent

        with running(folder, told) as worker:
            send(100)
            worker.wait_until(lambda s: s.answered == 100)
            fill(disk)
            send(5000)
            full = worker.wait_until(lambda s: "cannot write the state" in s.problem)
            send(100)
            worker.wait_until(lambda s: s.answered == sent)
            worker.kill()
        with running(folder, told) as worker:
            refused = worker.wait_until(lambda s: s.state is WorkerState.RECONNECTING)
            free(disk)
            worker.wait_until(lambda s: s.state is WorkerState.RUNNING and s.problem == "")
            send(10)
            worker.wait_until(lambda s: s.answered == 10)
            assert worker.stop() == 0
        dead = everything(broker, DEAD)
        broker.close()

    assert str(disk) in full.problem
    assert str(disk) in refused.problem
    assert dead == []


@pytest.mark.long
def test_a_worker_whose_log_file_has_no_room_streams_on(folder: Path) -> None:
    with small_disk(folder / "logs", size_bytes=64 << 10) as disk:
        broker = opened(folder)
        told = settings(folder, double(folder))
        (folder / "one.log").symlink_to(disk / "one.log")
        fill(disk)
        with running(folder, told) as worker:
            broker.send(numbered(range(100)))
            worker.wait_until(lambda s: s.answered == 100)
            code = worker.stop()
        found = keys(broker, OUT)
        broker.close()

    assert code == 0
    assert found == Counter(range(100))


@pytest.mark.long
@pytest.mark.parametrize("delivery", Delivery)
def test_a_redis_whose_memory_is_full_is_waited_for_and_reading_stops_meanwhile(
    folder: Path, delivery: Delivery
) -> None:
    with site("redis") as (where, broker):
        broker.send(numbered(range(20_000)))
        told = settings(
            folder,
            double(folder),
            broker=where.url,
            session_timeout_s=where.session_timeout_s,
            delivery=delivery,
            max_batch_size=16,
            paused=True,
        )
        with running(folder, told) as worker, redis.Redis(port=where.port) as client:
            worker.wait_until(lambda s: s.state is WorkerState.PAUSED)
            client.config_set("maxmemory", "1")
            worker.client.post("/internal/resume")
            full = worker.wait_until(lambda s: "memory is full" in s.problem)
            time.sleep(0.7)  # what is in hand comes to its end
            read = worker.status().read
            time.sleep(1.5)
            read_later = worker.status().read
            client.config_set("maxmemory", "0")
            worker.wait_until(lambda s: s.problem == "" and sum(lags(s)) == 0 and s.in_flight == 0)
            assert worker.stop() == 0
        found = keys(broker, OUT)

    assert full.state in {WorkerState.RETRYING, WorkerState.RECONNECTING}
    if delivery is Delivery.AT_LEAST_ONCE:  # the other one reads the same again and again
        assert read_later == read
    assert found.keys() == set(range(20_000))
    if delivery is Delivery.EXACTLY_ONCE:
        assert found == Counter(range(20_000))


def lags(status: StreamStatus) -> list[int]:
    return [
        1 if partition.lag_records is None else partition.lag_records
        for partition in status.partitions
    ]
