"""`headrace stream up` without a control plane."""

import json
import os
import signal

import numpy as np
import pytest

from headrace.core.processes import start_ticks
from tests.e2e.streaming.conftest import Start, Streams, is_worker, rows, wait_for, workers

pytestmark = pytest.mark.e2e

UP = ("stream", "up", "--model", "mlp.onnx", "--broker", "log:demo", "--from", "in", "--to", "out")


def stream_of(name: str, sink: str) -> str:
    source = "{broker: 'log:demo', topics: [in]}"
    return f"  - name: {name}\n    model: mlp.onnx\n    source: {source}\n    sink: {{{sink}}}\n"


def spec_of(sink: str) -> str:
    """A spec whose only stream is `a`."""
    return "streams:\n" + stream_of("a", sink)


@pytest.mark.long
def test_what_a_killed_worker_had_is_answered_once_and_as_the_model_says(
    streams: Streams, start: Start
) -> None:
    first, second = rows(400), rows(400, first=400)
    streams.send(first)
    running = start(*UP, "--workers", "2", "--exactly-once")
    wait_for(lambda: streams.count("out") >= 400)
    [victim, _] = wait_for(lambda: found if len(found := workers(running.pid)) == 2 else None)
    streams.send(second)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: streams.count("out") >= 800)
    wait_for(lambda: len(workers(running.pid)) == 2)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)

    answers = {record.key: json.loads(record.value or b"") for record in streams.records("out")}
    assert running.returncode == 0, said
    assert len(streams.records("out")) == 800
    assert set(answers) == {row["id"].encode() for row in first + second}
    [name] = answers[b"c0"]
    got = [answers[row["id"].encode()][name] for row in first + second]
    assert np.allclose(got, streams.expected(first + second), atol=1e-5)


def test_hosts_that_share_a_stream_do_not_take_each_other_s_place(
    streams: Streams, start: Start
) -> None:
    first, second = rows(400), rows(400, first=400)
    streams.send(first)
    hosts = [start(*UP, "--exactly-once", "--member-prefix", name) for name in ("pod-a", "pod-b")]
    pids = wait_for(lambda: found if all(found := [workers(one.pid) for one in hosts]) else None)
    wait_for(lambda: streams.count("out") >= 400)
    streams.send(second)
    wait_for(lambda: streams.count("out") >= 800)
    still = [workers(one.pid) for one in hosts]
    for one in hosts:
        one.send_signal(signal.SIGTERM)
    said = [one.communicate(timeout=60)[1] for one in hosts]

    assert [one.returncode for one in hosts] == [0, 0], said
    assert still == pids
    assert len(streams.records("out")) == 800


@pytest.mark.long
def test_workers_end_with_the_command_whatever_ends_it(streams: Streams, start: Start) -> None:
    streams.send(rows(1))
    running = start(*UP, "--workers", "2")
    pids = wait_for(lambda: found if len(found := workers(running.pid)) == 2 else None)
    wait_for(lambda: streams.count("out") == 1)
    running.kill()
    running.wait()

    wait_for(lambda: not any(map(is_worker, pids)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--model", "bad.onnx"), "bad.onnx"),
        pytest.param(("--model", "missing.onnx"), "missing.onnx", marks=pytest.mark.long),
        (("--to", "in"), "predictions would be scored again"),
        pytest.param(("--broker", "carrier-pigeon:x"), "names no broker", marks=pytest.mark.long),
        (("--broker", "kafka://me:${NOBODY_SAID}@host"), "NOBODY_SAID"),
        pytest.param(("--from", "a b"), "does not match", marks=pytest.mark.long),
    ],
)
def test_a_mistake_ends_it_and_is_told(
    streams: Streams, change: tuple[str, str], said: str
) -> None:
    arguments = list(UP)
    arguments[arguments.index(change[0]) + 1] = change[1]
    done = streams.shell.run(*arguments)

    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_file_runs_the_streams_that_are_named(streams: Streams, start: Start) -> None:
    streams.send(rows(10))
    streams.spec(spec_of("topic: a-out, key: id, fields: [id]") + stream_of("b", "topic: b-out"))
    running = start("stream", "up", "-f", "headrace.yaml", "a")
    wait_for(lambda: streams.count("a-out") == 10)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)

    assert running.returncode == 0
    assert {answer["id"] for answer in streams.answers("a-out")} == {f"c{i}" for i in range(10)}
    assert streams.records("b-out") == []
    unknown = streams.shell.run("stream", "up", "-f", "headrace.yaml", "nobody")
    assert "has no stream 'nobody'; it has: a, b" in unknown.stderr


@pytest.mark.long
def test_a_stream_that_stops_before_a_record_ends_the_command(streams: Streams) -> None:
    streams.send(rows(3), raw=b'{"input": "no numbers"}\n', partitions=1)
    streams.spec(spec_of("topic: out") + "    errors: {policy: stop}\n")
    done = streams.shell.run("stream", "up", "-f", "headrace.yaml")

    assert done.returncode == 1
    assert "stream 'a'" in done.stderr.splitlines()[-1]
    assert streams.count("out") == 3
    letters = streams.shell.run("stream", "dlq", "list", "a", "-f", "headrace.yaml")
    assert "its policy is 'stop'" in letters.stderr


def test_dead_letters_are_listed_put_back_once_and_die_with_their_attempts(
    streams: Streams, start: Start
) -> None:
    streams.send(rows(5), raw=b'{"input": "no numbers"}\nno json\n')
    start(*UP)
    dead = ("dlq", "list", "mlp", "--broker", "log:demo")
    back = ("dlq", "redrive", "mlp", "--broker", "log:demo", "--from", "in")
    first = wait_for(lambda: found if len(found := streams.json(*dead)) == 2 else None)
    would = streams.json(*back, "--dry-run")
    others = streams.json(*back, "--error", "UNAVAILABLE")
    done = streams.json(*back)
    second = wait_for(lambda: found if len(found := streams.json(*dead)) == 2 else None)

    assert {letter["error"] for letter in first} == {"INVALID_ARGUMENT"}
    assert {letter["value"] for letter in first} == {'{"input": "no numbers"}', "no json"}
    assert {letter["attempts"] for letter in first} == {1}
    assert (would["redriven"], others["redriven"], done["redriven"]) == (2, 0, 2)
    assert {letter["attempts"] for letter in second} == {2}
    assert len(streams.records("in")) == 5 + 2 + 2
    assert streams.json(*dead, "--error", "unavailable") == []


@pytest.mark.long
def test_a_replay_scores_again_what_was_written_since(streams: Streams) -> None:
    streams.send(rows(50))
    streams.spec(spec_of("topic: out, fields: [id]"))
    replay = ("replay", "a", "-f", "headrace.yaml", "--from")
    told = streams.json(*replay, "-1h", "--to", "again", "--dry-run")
    before = streams.count("again")
    done = streams.json(*replay, "-1h", "--to", "again", "--workers", "2")
    nothing = streams.json(*replay, "-0s", "--to", "again")

    assert (told["records"], told["answered"], before) == (50, None, 0)
    assert (done["records"], done["answered"]) == (50, 50)
    assert {answer["id"] for answer in streams.answers("again")} == {f"c{i}" for i in range(50)}
    assert (nothing["records"], nothing["answered"]) == (0, None)
    assert streams.records("out") == []


@pytest.mark.long
def test_a_stopped_stream_is_moved_and_a_running_one_is_not(streams: Streams, start: Start) -> None:
    streams.send(rows(20))
    streams.spec(spec_of("topic: out"))
    move = ("stream", "replay", "a", "-f", "headrace.yaml", "--from", "-1h", "--move")
    running = start("stream", "up", "-f", "headrace.yaml")
    wait_for(lambda: streams.count("out") == 20)
    refused = streams.shell.run(*move)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    moved = streams.shell.run(*move)
    start("stream", "up", "-f", "headrace.yaml")
    wait_for(lambda: streams.count("out") == 40)

    assert refused.returncode == 1
    assert "stop the stream first" in refused.stderr
    assert moved.returncode == 0
    assert start_ticks(running.pid) is None
