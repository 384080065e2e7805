"""Streams under the control plane: adopted, replaced, paused, and no business of requests."""

import json
import os
import signal

import pytest

from headrace.core.processes import start_ticks
from tests.e2e.streaming.conftest import Streams, is_worker, rows, wait_for

pytestmark = pytest.mark.e2e

SPEC = """
version: 1
endpoints:
  - {name: mlp, model: ./mlp.onnx}
streams:
  - name: own
    model: ./mlp.onnx
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out, key: id}
    delivery: exactly_once
    workers: 2
  - name: through
    endpoint: mlp
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out-2}
"""


BOTH = ("own", "through")


@pytest.fixture
def system(streams: Streams) -> Streams:
    streams.spec(SPEC)
    streams.send(rows(100))
    streams.up()
    wait_for(lambda: streams.is_running(*BOTH))
    return streams


@pytest.mark.long
def test_streams_run_pause_and_outlive_their_control_plane(system: Streams) -> None:
    wait_for(lambda: system.count("out") == 100 and system.count("out-2") == 100)
    before = system.pids()
    system.run("stream", "pause", "own")
    wait_for(lambda: system.view("own")["state"] == "paused")
    system.send(rows(60, first=100))
    wait_for(lambda: system.count("out-2") == 160)
    wait_for(lambda: system.view("own")["lag_records"] == 60)
    control = system.control()
    os.kill(control.pid, signal.SIGKILL)
    wait_for(lambda: start_ticks(control.pid) is None)
    system.send(rows(10, first=160))
    wait_for(lambda: system.count("out-2") == 170)  # nobody looks after it, and it goes on
    system.up()

    wait_for(lambda: system.view("own")["state"] == "paused")
    assert system.pids() == before
    assert system.count("out") == 100
    system.run("stream", "resume", "own")
    wait_for(lambda: system.count("out") == 170)
    wait_for(lambda: system.is_running(*BOTH))
    assert system.pids() == before
    told = system.shell.run("events", "--json", "-n", "100").stdout.splitlines()
    assert {"StreamRunning", "StreamPaused"} <= {json.loads(line)["reason"] for line in told}


@pytest.mark.long
def test_a_new_spec_replaces_workers_and_loses_and_repeats_nothing(system: Streams) -> None:
    wait_for(lambda: system.count("out") == 100)
    before = system.pids()
    applied = system.apply(SPEC.replace("workers: 2", "workers: 2\n    max_batch_size: 16"))
    sent = 100
    while any(start_ticks(pid) is not None for pid in before):
        system.send(rows(20, first=sent))
        sent += 20
    wait_for(lambda: system.is_running(*BOTH))
    wait_for(lambda: system.count("out") >= sent)

    keys = [record.key for record in system.records("out")]
    assert "stream 'own' changed" in applied
    assert not set(before) & set(system.pids())
    assert sorted(keys, key=repr) == sorted((f"c{i}".encode() for i in range(sent)), key=repr)


@pytest.mark.long
def test_a_worker_that_dies_comes_back_and_requests_never_notice(system: Streams) -> None:
    [victim, other] = system.pids()
    os.kill(victim, signal.SIGKILL)
    asked = system.shell.run(
        "infer", "mlp", "-i", "-", stdin=json.dumps([rows(1)[0]["input"]]).encode()
    )
    wait_for(lambda: system.is_running("own") and victim not in system.pids())

    told = system.view("own")
    assert asked.returncode == 0, asked.stderr
    assert other in system.pids()
    assert told["restarts"] == 1
    metrics = system.metrics()
    assert 'headrace_stream_workers_ready{stream="own"} 2' in metrics
    assert 'headrace_stream_worker_restarts_total{stream="own"} 1' in metrics
    assert 'headrace_stream_records_answered_total{worker="own-1",stream="own"}' in metrics
    assert 'headrace_stream_lag_records{worker="through-0",stream="through"' in metrics


@pytest.mark.long
def test_what_is_not_wanted_ends_and_so_does_everything_with_the_system(system: Streams) -> None:
    gone, kept = system.pids("own"), system.pids("through")
    only = SPEC[: SPEC.index("  - name: own")] + SPEC[SPEC.index("  - name: through") :]
    wrong = system.spec(only.replace("endpoint: mlp", "endpoint: nobody"))
    refused = system.shell.run("apply", "-f", str(wrong), "--yes")
    applied = system.apply(only, "--yes")
    wait_for(lambda: not any(map(is_worker, gone)))
    names = [one["name"] for one in system.json("status")]
    system.shell.run("down")

    assert "stream 'own' removed" in applied
    assert names == ["through"]
    assert refused.returncode == 1
    assert not any(map(is_worker, kept))


@pytest.mark.long
def test_down_ends_workers_whose_control_plane_was_killed(system: Streams) -> None:
    control = system.control()
    os.kill(control.pid, signal.SIGKILL)
    running = [*pids_of_home(system)]
    done = system.shell.run("down")

    assert running
    assert "without a control plane" in done.stderr
    assert not any(map(is_worker, running))


def pids_of_home(streams: Streams) -> list[int]:
    """By what workers left on disk: nobody answers."""
    records = (streams.shell.home / "run" / "streams").glob("*.json")
    found = [json.loads(path.read_text()) for path in records]
    return [record["pid"] for record in found if "pid" in record]
