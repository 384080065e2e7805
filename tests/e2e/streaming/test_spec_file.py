"""Windows, features and endpoints as a spec file says them, under the control plane."""

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.streaming.records import Record
from headrace.testing import models
from tests.e2e.streaming.conftest import Start, Streams, wait_for
from tests.e2e.streaming.workers import features_spec

pytestmark = pytest.mark.e2e

WIDTH = 4
KEYS = 60
SPLIT = """
version: 1
endpoints:
  - name: m
    versions:
      - {{model: ./1.onnx, weight: {old}}}
      - {{model: ./2.onnx, weight: {new}}}
streams:
  - name: own
    endpoint: m
    source: {{broker: "log:demo", topics: [in]}}
    sink: {{topic: out, fields: [n]}}
    max_batch_size: 8
    delivery: exactly_once
"""
PUSHING = """
version: 1
endpoints:
  - name: score
    model: ./1.onnx
    features: &features {service: fraud, inputs: {x: [last, spend_1d, amount, bias]}}
streams:
  - name: fill
    source: {broker: "log:demo", topics: [payments]}
    windows:
      time: at
      windows:
        - {name: spend, size_s: 86400, function: sum, field: amount, key: card}
    push: {view: spending, fields: {last: amount, spend_1d: spend}, time: at}
    workers: 2
  - name: ask
    model: ./1.onnx
    source: {broker: "log:demo", topics: [asked]}
    sink: {topic: scored, fields: [n]}
    features: &features {service: fraud, inputs: {x: [last, spend_1d, amount, bias]}}
  - name: count
    model: ./1.onnx
    source: {broker: "log:demo", topics: [payments]}
    format: {columns: {x: [amount, n, latest, spread]}}
    windows:
      time: at
      windows:
        - {name: latest, size_s: 86400, key: card}
        - {name: spread, size_s: 86400, slide_s: 3600, function: max, field: amount}
    sink: {topic: counted, fields: [n, latest]}
""".replace("&features ", "")
OWN = """
  - name: own
    model: ./1.onnx
    source: {broker: "log:demo", topics: [payments]}
    sink: {topic: out, fields: [n]}
"""
DAY_S = 1_764_201_600.0  # 2025-11-27T00:00:00Z: windows of a day begin there


@pytest.fixture(autouse=True)
def matmuls(streams: Streams) -> None:
    for number in (1, 2):
        (streams.shell.folder / f"{number}.onnx").write_bytes(models.matmul(seed=number))


def expected(number: int, x: Any) -> Any:
    weights = np.random.default_rng(number).standard_normal((WIDTH, 3), dtype=np.float32)
    return np.asarray(x, np.float32) @ weights


def inputs(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": f"k{n % KEYS}", "n": n, "x": [1.0, n % 7, n % 5, float(n % 3)]}
        for n in range(first, first + count)
    ]


@pytest.mark.long
def test_a_stream_of_an_endpoint_follows_its_split_and_loses_nothing(streams: Streams) -> None:
    def answered_by(records: list[Record]) -> list[int]:
        """Which version answered, of each record by its number."""
        versions = {}
        for one in records:
            answer = json.loads(one.value or b"")
            row = inputs(1, first=answer["n"])[0]
            fits = [v for v in (1, 2) if np.allclose(answer["y"], expected(v, row["x"]), rtol=1e-4)]
            assert len(fits) == 1
            versions[answer["n"]] = fits[0]
        assert sorted(versions) == list(range(len(records)))
        return [versions[n] for n in range(len(records))]

    streams.spec(SPLIT.format(old=50, new=50))
    streams.send(inputs(400))
    streams.up()
    wait_for(lambda: streams.count("out") == 400)
    streams.apply(SPLIT.format(old=0, new=100), "--yes")
    streams.send(inputs(200, first=400))
    wait_for(lambda: streams.count("out") == 600)

    versions = answered_by(streams.records("out"))
    assert set(versions[:400]) == {1, 2}
    assert set(versions[400:]) == {2}


def payments(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": str(n % 20),
            "n": n,
            "card": n % 20,
            "amount": n / 4,
            "at": DAY_S + n,
            "x": [n / 4, n, 0, 0],
        }
        for n in range(count)
    ]


def sums(rows: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """The last amount of each card, and all of them together."""
    found: dict[int, tuple[float, float]] = {}
    for row in rows:
        _, before = found.get(row["card"], (0.0, 0.0))
        found[row["card"]] = (row["amount"], before + row["amount"])
    return found


def asked_of_endpoint(streams: Streams, card: int) -> list[float]:
    body = {
        "inputs": [
            {"name": "card", "datatype": "INT64", "shape": [1], "data": [card]},
            {"name": "amount", "datatype": "FP32", "shape": [1], "data": [3]},
            {"name": "bias", "datatype": "FP32", "shape": [1], "data": [1]},
        ]
    }
    request = urllib.request.Request(  # noqa: S310  # ours
        f"{streams.control().http_url}/v2/models/score/infer", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # ours
        return list(json.loads(answer.read())["outputs"][0]["data"])


@pytest.fixture
def pushing(streams: Streams) -> Streams:
    (streams.shell.folder / "features.yaml").write_text(features_spec("spend_1d", "FP32"))
    streams.run("features", "apply")
    streams.spec(PUSHING)
    return streams


@pytest.mark.long
def test_what_a_stream_pushes_is_what_requests_and_other_streams_look_up(pushing: Streams) -> None:
    rows = payments(400)
    pushing.send(rows, topic="payments")
    pushing.send([{"id": "warm", "n": -1, "card": 999, "amount": 3, "bias": 1}], topic="asked")
    pushing.up()
    wait_for(lambda: pushing.is_running("fill", "ask", "count"))
    wait_for(lambda: pushing.view("fill")["lag_records"] == 0)
    wait_for(lambda: pushing.count("counted") == 400)
    asks = [
        {"id": str(card), "n": card, "card": card, "amount": 3, "bias": 1} for card in range(20)
    ]
    pushing.send(asks, topic="asked")
    wait_for(lambda: pushing.count("scored") == 21)
    scored = {answer["n"]: answer["y"] for answer in pushing.answers("scored")}
    asked = [asked_of_endpoint(pushing, card) for card in range(20)]
    counted = {answer["n"]: answer["latest"] for answer in pushing.answers("counted")}
    state, store = pushing.shell.home / "stream-state", pushing.shell.home / "features" / "online"
    worker = Path(f"/proc/{pushing.view('fill')['members'][0]['pid']}").stat().st_uid
    theirs = [store, store / "online.db", state / "fill" / "fill"]

    x = [[*sums(rows)[card], 3, 1] for card in range(20)]
    np.testing.assert_allclose([scored[card] for card in range(20)], expected(1, x), rtol=1e-4)
    np.testing.assert_allclose(asked, expected(1, x), rtol=1e-4)
    assert counted == {n: n // 20 + 1 for n in range(400)}
    assert pushing.view("fill")["model"] == "view spending"
    assert {path.stat().st_uid for path in theirs} == {worker}
    assert (pushing.shell.home / "features").stat().st_uid == os.geteuid()
    pushing.run("stream", "pause", "count")
    said = pushing.apply(PUSHING.replace("workers: 2", "workers: 1"), "--yes")
    wait_for(lambda: pushing.is_running("fill"))
    assert "stream 'fill' changed" in said
    assert {path.name for path in state.iterdir()} == {"fill", "count"}

    only = PUSHING[: PUSHING.index("  - name: fill")] + PUSHING[PUSHING.index("  - name: ask") :]
    pushing.apply(only, "--yes")
    wait_for(lambda: not (state / "fill").exists())
    assert (state / "count" / "count").is_dir()
    pushing.shell.run("down")
    assert (state / "count" / "count").is_dir()


@pytest.mark.long
def test_the_foreground_runs_all_of_it_too(pushing: Streams, start: Start) -> None:
    rows = payments(200)
    pushing.send(rows, topic="payments")
    path = pushing.spec(PUSHING + OWN)
    running = start("stream", "up", "-f", path.name, "fill", "count", "own")
    wait_for(lambda: pushing.count("out") == 200 and pushing.count("counted") == 200)
    wait_for(lambda: read_features(pushing) == sums(rows))
    running.terminate()
    _, said = running.communicate(timeout=60)

    assert running.returncode == 0, said
    assert "stream 'fill': payments to view spending" in said
    assert sorted(json.loads(one.value or b"")["n"] for one in pushing.records("out")) == list(
        range(200)
    )
    assert (Path(pushing.shell.home) / "stream-state" / "fill" / "fill").is_dir()


@pytest.mark.long
def test_a_replay_scores_everything_and_leaves_no_state(pushing: Streams) -> None:
    rows = payments(100)
    pushing.send(rows, topic="payments")
    windows = "    windows: {windows: [{name: times, size_s: 60, key: card}], time: at}\n"
    pushing.spec(PUSHING + OWN + windows)
    again = ("replay", "own", "-f", "headrace.yaml", "--from", "-1h", "--to", "again")
    done = pushing.json(*again)
    pushed = pushing.json("replay", "fill", "-f", "headrace.yaml", "--from", "-1h")
    refused = pushing.shell.run(
        *("stream", "replay", "fill", "-f", "headrace.yaml", "--from", "-1h", "--to", "x")
    )

    assert (done["records"], done["answered"], pushed["answered"]) == (100, 100, 100)
    assert read_features(pushing) == sums(rows)
    assert list((pushing.shell.home / "stream-state").glob("*/*/*")) == []
    assert refused.returncode == 1
    assert "pushes features and has no answer topic" in refused.stderr


def read_features(streams: Streams) -> dict[int, tuple[float, float]]:
    names = [f"card={card}" for card in range(20)]
    options = [word for name in names for word in ("-k", name)]
    found = json.loads(streams.run("features", "get", "fraud", *options, "--json").stdout)
    return {
        card: (row["last"], row["spend_1d"])
        for card, row in enumerate(row["features"] for row in found["rows"])
    }
