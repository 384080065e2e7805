"""What an operator sees of streams: waited for, in the status, over time, and as alerts."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest

from headrace.cli.base.output import NOT_READY
from headrace.core.processes import start_ticks
from headrace.streaming.broker import Membership
from headrace.streaming.brokers.log.broker import LogBroker
from tests.contract.brokers.rig import Listener
from tests.e2e.control.test_row_check import centred
from tests.e2e.streaming.conftest import Streams, rows, wait_for

pytestmark = pytest.mark.e2e

SPEC = """
version: 1
streams:
  - name: own
    model: ./mlp.onnx
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out, key: id}
"""
AWAY = """
  - name: away
    model: ./mlp.onnx
    source: {broker: "redis://127.0.0.1:1/0", topics: [in]}
    sink: {topic: out, key: id}
"""
STOPS = """
  - name: stops
    model: ./mlp.onnx
    source: {broker: "log:demo", topics: [bad]}
    sink: {topic: never, key: id}
    errors: {policy: stop}
"""
WITHOUT_PARTITIONS = """
version: 1
streams:
  - name: reserve
    model: ./mlp.onnx
    source: {broker: "log:demo", topics: [narrow]}
    sink: {topic: out-reserve}
    workers: 2
  - name: taken
    model: ./mlp.onnx
    source: {broker: "log:demo", topics: [narrow]}
    sink: {topic: out-taken}
  - name: half
    model: ./mlp.onnx
    source: {broker: "log:demo", topics: [narrow, nowhere]}
    sink: {topic: out-half}
"""
CENTRED = """
version: 1
streams:
  - name: coupled
    model: ./centred.onnx
    source: {broker: "log:demo", topics: [wide]}
    sink: {topic: out-coupled}
    rows_independent: true
"""
JOBS = """
jobs:
  - {name: nightly, model: mlp, input: /in, output: "/out/{run_id}"}
"""


@pytest.fixture
def system(streams: Streams) -> Streams:
    """A control plane without any stream yet, and records that wait."""
    streams.spec("version: 1\n")
    streams.send(rows(50))
    streams.up()
    return streams


def status(streams: Streams) -> Any:
    return json.loads(streams.shell.run("status", "--json").stdout)


def has_ended(pid: int) -> bool:
    return start_ticks(pid) is None


def alerts(streams: Streams, stream: str) -> dict[str, str]:
    done = streams.shell.run("alerts", "--stream", stream, "--json")
    return {one["name"]: one["state"] for one in json.loads(done.stdout)["alerts"]}


def test_an_apply_waits_until_streams_run_and_the_status_shows_them(system: Streams) -> None:
    system.apply(SPEC + JOBS, "--wait")
    at_once = status(system)
    wait_for(lambda: system.count("out") == 50)
    wait_for(lambda: status(system)["jobs"])
    table = system.run("status").stdout

    assert [(one["name"], one["state"]) for one in at_once["streams"]] == [("own", "running")]
    assert at_once["ready"]
    lines = [line.split() for line in table.splitlines()]
    assert ["own", "running", "1/1"] in [line[:3] for line in lines]
    assert ["nightly", "by", "hand"] in [line[:3] for line in lines]


@pytest.mark.long
def test_an_apply_says_which_stream_does_not_run_and_why(system: Streams) -> None:
    system.spec(SPEC + AWAY)
    applied = system.shell.run("apply", "-f", "headrace.yaml", "--wait", "--wait-s", "20")
    told = system.shell.run("status")

    assert applied.returncode == told.returncode == NOT_READY
    assert "not ready: stream 'away': " in applied.stderr
    assert "not ready: stream 'own'" not in applied.stderr
    assert "stream 'away': retrying: " in told.stdout
    assert not status(system)["ready"]


@pytest.mark.long
def test_a_stream_that_stopped_before_a_record_is_not_waited_for(system: Streams) -> None:
    system.send([], topic="bad", raw=b'{"x": 1}\n')
    system.apply(SPEC + STOPS)
    wait_for(lambda: system.json("status", "stops")["stuck"])
    again = system.shell.run("apply", "-f", "headrace.yaml", "--wait", "--wait-s", "300")

    assert again.returncode == NOT_READY  # long before the time was up, or this test were killed
    assert "not ready: stream 'stops': failed" in again.stderr


@pytest.mark.long
def test_a_worker_that_ends_again_and_again_is_an_alert(system: Streams) -> None:
    system.apply(SPEC, "--wait")
    before = alerts(system, "own")
    for _ in range(3):
        [pid] = wait_for(lambda: [one for one in system.pids() if one])
        os.kill(pid, signal.SIGKILL)
        wait_for(partial(has_ended, pid))
    wait_for(lambda: alerts(system, "own").get("HeadraceStreamWorkerCrashing") == "firing")

    told = [json.loads(line) for line in system.shell.run("events", "--json").stdout.splitlines()]
    fired = [one for one in told if one["kind"] == "alert"]
    assert "HeadraceStreamWorkerCrashing" not in before
    assert [(one["reason"], one["data"]["stream"]) for one in fired] == [("Firing", "own")]


def test_rows_of_a_stream_that_depend_on_each_other_are_a_warning(system: Streams) -> None:
    centred(system.shell.folder / "centred.onnx")
    raw = b"".join(b'{"x": [%d, 0, 1, 2]}\n' % number for number in range(100))
    system.send([], topic="wide", raw=raw)
    system.apply(CENTRED, "--wait")
    wait_for(lambda: system.json("status", "coupled")["warning"])
    table = system.run("status").stdout  # it runs

    assert "stream 'coupled': model coupled: output 'y' differs" in table
    assert "remove `rows_independent`" in table


@contextmanager
def only_member(broker: LogBroker, group: str, topic: str) -> Iterator[None]:
    """While the block runs, a member that came first has all partitions of `topic`."""
    membership = Membership(group=group, member="neighbour", topics=(topic,))
    session = broker.join(membership, Listener())
    has_ended = threading.Event()

    def poll() -> None:
        while not has_ended.is_set():
            session.poll(1, 0.1)

    session.poll(1, 0.1)
    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
        session.close()


@pytest.mark.long
def test_a_stream_without_partitions_is_stalled_and_one_with_a_worker_in_reserve_runs(
    system: Streams,
) -> None:
    with closing(LogBroker(system.shell.home / "streams" / "demo")) as broker:
        broker.create_topic("narrow", partitions=1)
        with only_member(broker, "taken", "narrow"):
            system.apply(WITHOUT_PARTITIONS)
            wait_for(lambda: system.json("status", "half")["state"] == "retrying")
            wait_for(lambda: system.json("status", "half")["state"] == "stalled")
            wait_for(lambda: system.json("status", "taken")["state"] == "stalled")
            wait_for(lambda: alerts(system, "half").get("HeadraceStreamDown") == "pending")
            wait_for(lambda: alerts(system, "taken").get("HeadraceStreamDown") == "pending")
            table, at_once = system.shell.run("status").stdout, status(system)
        broker.create_topic("nowhere", partitions=1)
        wait_for(lambda: system.is_running("half", "taken", "reserve"))

    told = [json.loads(line) for line in system.shell.run("events", "--json").stdout.splitlines()]
    stalled = [one["data"]["stream"] for one in told if one["reason"] == "StreamStalled"]
    [reserve] = [one for one in at_once["streams"] if one["name"] == "reserve"]
    assert sorted(stalled) == ["half", "taken"]
    assert (reserve["state"], reserve["running"]) == ("running", 1)
    assert "topic 'nowhere' does not exist" in table
    assert "other members of group 'taken' hold all of them" in table
    assert "HeadraceStreamDown" not in alerts(system, "reserve")
