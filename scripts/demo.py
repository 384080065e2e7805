"""Demonstration of the whole system on a real model.

    python scripts/demo.py [--once]

Trains the digits example, serves it behind the gateway, sends the held-out rows over HTTP and gRPC,
and compares every answer with ONNX Runtime. Runs until Ctrl-C; with `--once` it stops after the
checks, and the exit status is 0 only if all of them passed.
"""

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from headrace.client import AsyncClient, Client
from headrace.core import Array

ROOT: Final = Path(__file__).resolve().parent.parent
MODEL: Final = "digits"
BURST: Final = 32
"""Concurrent requests in the last pass; enough for batches to form."""
GOOD_ACCURACY: Final = 0.95
TOLERANCE: Final = 1e-5

console = Console()


class Ports(NamedTuple):
    """TCP ports of the system."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    admin: int = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers to all rows, in their order."""

    labels: Array
    probabilities: Array
    latencies_s: Array


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--once", action="store_true", help="stop after the checks")
    once = parser.parse_args().once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)  # a shell may have started this with SIGINT ignored
    try:
        # A short path, because socket paths below it are limited to 107 bytes.
        with tempfile.TemporaryDirectory(prefix="headrace-demo-") as work:
            return 0 if _demo(Path(work), once=once) else 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130 if once else 0
    except subprocess.CalledProcessError as error:
        console.print(f"[red]failed:[/] {' '.join(map(str, error.cmd))}", soft_wrap=True)
        console.print(error.output or "", markup=False)
        return 1


def _demo(work: Path, *, once: bool) -> bool:
    with console.status("training the digits example"):
        _run(sys.executable, ROOT / "examples/digits/train.py", work)
    held_out = np.load(work / "test.npz")
    rows, labels = held_out["inputs"], held_out["labels"]
    session = onnxruntime.InferenceSession(work / f"{MODEL}.onnx")
    expected = session.run(["label", "probabilities"], {session.get_inputs()[0].name: rows})
    ports = _choose_ports()
    started = time.perf_counter()
    with _system(work / f"{MODEL}.onnx", work / "home", ports):
        console.print(f"ready after {time.perf_counter() - started:.1f} s")
        urls = (f"http://127.0.0.1:{ports.http}", f"grpc://127.0.0.1:{ports.grpc}")
        kinds = {
            "HTTP": (urls[0], 1),
            "gRPC": (urls[1], 1),
            f"gRPC, {BURST} at once": (urls[1], BURST),
        }
        with console.status(f"sending {len(rows)} rows over HTTP and gRPC"):
            passes = {
                name: asyncio.run(_infer(url, rows, at_once))
                for name, (url, at_once) in kinds.items()
            }
        passed = _report(passes, labels, ports)
        first = [int(value) for value in rows[0]]
        tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": first}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]})
        url = f"http://127.0.0.1:{ports.http}/v2/models/{MODEL}/infer"
        label = json.loads(_send(url, body)[1])["outputs"][0]["data"][0]
        passed &= _check("plain JSON", label == expected[0][0], f"label {label}")
        for name, answers in passes.items():
            close = np.allclose(answers.probabilities, expected[1], atol=TOLERANCE)
            equal = close and np.array_equal(answers.labels, expected[0])
            passed &= _check(f"{name}: same answers as ONNX Runtime", equal)
        if once:
            return passed
        console.print(
            f"\nHTTP and gRPC   http://127.0.0.1:{ports.http}\n"
            f"gRPC            127.0.0.1:{ports.grpc}\n"
            f"metrics         http://127.0.0.1:{ports.metrics}/metrics\n"
            f"management      http://127.0.0.1:{ports.admin} "
            f"(token: headrace token show --home {work / 'home'})\n",
            soft_wrap=True,
        )
        console.print(f"curl {url} -d '{body}'", soft_wrap=True, markup=False)
        console.print("\nrunning until Ctrl-C")
        while True:
            signal.pause()


@contextmanager
def _system(model: Path, home: Path, ports: Ports) -> Iterator[None]:
    headrace = Path(sys.executable).parent / "headrace"
    options = [text for name in ports._fields for text in (f"--{name}-port", getattr(ports, name))]
    try:
        with console.status("starting gateway, control plane and replica"):
            _run(headrace, "up", model, "--home", home, *options, "--detach")
        yield
    finally:
        with console.status("stopping"):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second one must not leave processes
            subprocess.run(  # noqa: S603  # our own command
                [headrace, "down", "--home", home], check=False, capture_output=True
            )


async def _infer(url: str, rows: Array, at_once: int) -> Answers:
    """Send each row as one request, `at_once` requests at a time."""
    async with AsyncClient(url) as client:
        name = (await client.signature(MODEL)).inputs[0].name
        slots = asyncio.Semaphore(at_once)

        async def infer(row: Array) -> tuple[dict[str, Array], float]:
            async with slots:
                started = time.perf_counter()
                response = await client.infer(MODEL, {name: row[np.newaxis]})
                return response.outputs, time.perf_counter() - started

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(infer(row)) for row in rows]
    results = [task.result() for task in tasks]
    return Answers(
        labels=np.concatenate([outputs["label"] for outputs, _ in results]),
        probabilities=np.concatenate([outputs["probabilities"] for outputs, _ in results]),
        latencies_s=np.array([seconds for _, seconds in results]),
    )


def _report(passes: dict[str, Answers], labels: Array, ports: Ports) -> bool:
    """Print latencies, batch sizes and the checks of the whole system; whether these passed."""
    table = Table("one row per request", "rows", "accuracy", "p50 ms", "p99 ms")
    accuracy = 0.0
    for name, answers in passes.items():
        accuracy = float(np.mean(answers.labels == labels))
        p50, p99 = np.percentile(answers.latencies_s, [50, 99]) * 1e3
        table.add_row(name, str(len(labels)), f"{accuracy:.1%}", f"{p50:.2f}", f"{p99:.2f}")
    console.print(table, "[dim]latency as measured by a Python client on the same cores[/]")
    with Client(f"http://127.0.0.1:{ports.http}") as client:
        batches = client.statistics(MODEL)["model_stats"][0]["batch_stats"]
    counts = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in batches}
    sizes = ", ".join(f"{size} ({count} times)" for size, count in sorted(counts.items()))
    console.print(f"batch sizes: {sizes}\n", soft_wrap=True)
    requests = sum(
        float(line.rsplit(" ", 1)[1])
        for line in _send(f"http://127.0.0.1:{ports.metrics}/metrics")[1].splitlines()
        if line.startswith("nv_inference_request_success{")
    )
    status, _ = _send(f"http://127.0.0.1:{ports.http}/v2/health/ready")
    return all(
        [
            _check("gateway is ready", status == HTTPStatus.OK, f"HTTP {status}"),
            _check(
                f"accuracy above {GOOD_ACCURACY:.0%}", accuracy > GOOD_ACCURACY, f"{accuracy:.1%}"
            ),
            _check("metrics count requests", requests > 0, f"{requests:g} requests"),
        ]
    )


def _check(name: str, passed: bool, value: str = "") -> bool:  # noqa: FBT001  # the result itself
    mark = "[green]ok[/]    " if passed else "[red]FAILED[/]"
    console.print(f"{mark} {name}  [dim]{value}[/]")
    return passed


def _send(url: str, body: str | None = None) -> tuple[int, str]:
    """Send a GET, or a POST if there is a body; return the status and the body of the answer."""
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310  # loopback
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  # loopback
        return response.status, response.read().decode()


def _choose_ports() -> Ports:
    """The default ports if all are free, else ports that the system picks."""
    with ExitStack() as stack:
        for ports in (Ports(), Ports(0, 0, 0, 0)):
            sockets = [stack.enter_context(socket.socket()) for _ in ports]
            try:
                for listener, port in zip(sockets, ports, strict=True):
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return Ports(*(listener.getsockname()[1] for listener in sockets))
    raise AssertionError("the system has no free ports")


def _run(*command: object) -> None:
    subprocess.run(  # noqa: S603  # our own scripts
        list(map(str, command)),
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
