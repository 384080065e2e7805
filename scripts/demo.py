"""Start the whole system on a real model, use it as a caller would, and say what came out.

    python scripts/demo.py [--once]

Trains the digits example, serves it behind the gateway, sends the rows that training never saw by
HTTP and by gRPC, and holds every answer against ONNX Runtime's own. Stays up until Ctrl-C; with
`--once` it stops by itself, and the exit status is 0 only if every check held.
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
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from headrace.client import AsyncClient, Client
from headrace.core import Array

ROOT: Final = Path(__file__).resolve().parent.parent
MODEL: Final = "digits"
BURST: Final = 32
"""Concurrent requests in the second pass; enough for batches to form."""
GOOD_ACCURACY: Final = 0.95
TOLERANCE: Final = 1e-5
LABEL: Final = "label"
PROBABILITIES: Final = "probabilities"

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the demo listens."""

    http: int
    grpc: int
    metrics: int
    admin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Labelled rows, and what ONNX Runtime alone says about them."""

    inputs: Array
    labels: Array
    expected_labels: Array
    expected_probabilities: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came back over one protocol, in the order of the rows."""

    labels: Array
    probabilities: Array
    latencies_s: Array

    def accuracy(self, rows: Rows) -> float:
        """The share of rows whose true label came back."""
        return float(np.mean(self.labels == rows.labels))

    def agrees(self, rows: Rows) -> bool:
        """Whether every answer is the one ONNX Runtime gives by itself."""
        same = np.array_equal(self.labels, rows.expected_labels)
        close = np.allclose(self.probabilities, rows.expected_probabilities, atol=TOLERANCE)
        return same and close


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that had to hold, whether it did, and the figure behind it."""

    name: str
    held: bool
    seen: str


def main() -> int:
    """Run the demo; 0 only if every check held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--once", action="store_true", help="stop by itself after the checks")
    once = parser.parse_args().once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)  # a shell may have started us with SIGINT ignored
    try:
        with ExitStack() as stack:
            # A short path: the sockets below it may have at most 107 bytes.
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-demo-")))
            held = _demo(stack, work, once=once)
    except KeyboardInterrupt:
        console.print("stopped")
        return 0 if not once else 130
    except subprocess.CalledProcessError as error:
        console.print(f"[red]failed:[/] {' '.join(map(str, error.cmd))}", soft_wrap=True)
        console.print(error.output or "", markup=False)
        return 1
    return 0 if held else 1


def _demo(stack: ExitStack, work: Path, *, once: bool) -> bool:
    with console.status("training the digits example"):
        _run(sys.executable, ROOT / "examples/digits/train.py", work)
    rows = _load_rows(work)
    ports = _choose_ports()
    began = time.perf_counter()
    with console.status("starting gateway, control plane and replica"):
        stack.enter_context(_system(work / f"{MODEL}.onnx", work / "home", ports))
    console.print(f"up, and a real request answered, in {time.perf_counter() - began:.1f} s")
    with console.status(f"sending {len(rows.labels)} rows by HTTP and by gRPC"):
        http = _ask_one_by_one(f"http://127.0.0.1:{ports.http}", rows)
        grpc = _ask_one_by_one(f"grpc://127.0.0.1:{ports.grpc}", rows)
        burst = asyncio.run(_ask_at_once(f"grpc://127.0.0.1:{ports.grpc}", rows))
    checks = _check(rows, ports, http=http, grpc=grpc, burst=burst)
    _report(
        rows,
        ports,
        work / "home",
        checks,
        {"HTTP": http, "gRPC": grpc, f"gRPC, {BURST} at once": burst},
    )
    held = all(check.held for check in checks)
    if not once:
        console.print("\nup until Ctrl-C")
        while True:
            signal.pause()
    return held


@contextmanager
def _system(model: Path, home: Path, ports: Ports) -> Iterator[None]:
    headrace = Path(sys.executable).parent / "headrace"
    arguments = (
        *("--http-port", ports.http, "--grpc-port", ports.grpc),
        *("--metrics-port", ports.metrics, "--admin-port", ports.admin),
    )
    try:
        _run(headrace, "up", model, "--home", home, *arguments, "--detach")
        yield
    finally:
        with console.status("stopping"):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # once more must not leave processes behind
            subprocess.run(  # noqa: S603  # our own command
                [headrace, "down", "--home", home], check=False, capture_output=True
            )


def _load_rows(work: Path) -> Rows:
    held_out = np.load(work / "test.npz")
    session = onnxruntime.InferenceSession(work / f"{MODEL}.onnx")
    labels, probabilities = session.run(
        [LABEL, PROBABILITIES], {session.get_inputs()[0].name: held_out["inputs"]}
    )
    return Rows(
        inputs=held_out["inputs"],
        labels=held_out["labels"],
        expected_labels=labels,
        expected_probabilities=probabilities,
    )


def _ask_one_by_one(url: str, rows: Rows) -> Answers:
    """Every row in a request of its own, the next when the last is answered."""
    results = []
    with Client(url) as client:
        name = client.signature(MODEL).inputs[0].name
        for row in rows.inputs:
            began = time.perf_counter()
            response = client.infer(MODEL, {name: row[np.newaxis]})
            results.append((response.outputs, time.perf_counter() - began))
    return _answers(results)


async def _ask_at_once(url: str, rows: Rows) -> Answers:
    """Every row in a request of its own, `BURST` of them in flight."""
    async with AsyncClient(url) as client:
        name = (await client.signature(MODEL)).inputs[0].name
        slots = asyncio.Semaphore(BURST)

        async def ask(row: Array) -> tuple[dict[str, Array], float]:
            async with slots:
                began = time.perf_counter()
                response = await client.infer(MODEL, {name: row[np.newaxis]})
                return response.outputs, time.perf_counter() - began

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(row)) for row in rows.inputs]
    return _answers([task.result() for task in tasks])


def _answers(results: list[tuple[dict[str, Array], float]]) -> Answers:
    return Answers(
        labels=np.concatenate([outputs[LABEL] for outputs, _ in results]),
        probabilities=np.concatenate([outputs[PROBABILITIES] for outputs, _ in results]),
        latencies_s=np.array([seconds for _, seconds in results]),
    )


def _check(
    rows: Rows, ports: Ports, *, http: Answers, grpc: Answers, burst: Answers
) -> list[Check]:
    ready = _status(f"http://127.0.0.1:{ports.http}/v2/health/ready")
    plain = _ask_plainly(ports, rows)
    samples = _metric_samples(ports)
    accuracy = http.accuracy(rows)
    return [
        Check(name="gateway is ready", held=ready == 200, seen=f"HTTP {ready}"),  # noqa: PLR2004
        Check(
            name=f"accuracy above {GOOD_ACCURACY:.0%}",
            held=accuracy > GOOD_ACCURACY,
            seen=f"{accuracy:.1%} of {len(rows.labels)} held-out rows",
        ),
        *(
            Check(name=f"{name} answers as ONNX Runtime does", held=got.agrees(rows), seen="")
            for name, got in (("HTTP", http), ("gRPC", grpc), ("a burst", burst))
        ),
        Check(
            name="plain JSON without our client",
            held=plain == rows.expected_labels[0],
            seen=f"label {plain}",
        ),
        Check(name="metrics count requests", held=samples > 0, seen=f"{samples:g} requests"),
    ]


def _ask_plainly(ports: Ports, rows: Rows) -> int:
    request = urllib.request.Request(  # noqa: S310  # loopback, http
        _infer_url(ports),
        data=json.dumps(_body(rows)).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        outputs = json.load(response)["outputs"]
    return int(next(output["data"][0] for output in outputs if output["name"] == LABEL))


def _body(rows: Rows) -> dict[str, object]:
    pixels = [int(value) for value in rows.inputs[0]]
    return {
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": pixels}],
        "outputs": [{"name": LABEL}],
    }


def _metric_samples(ports: Ports) -> float:
    """How many requests the metrics port says were answered."""
    url = f"http://127.0.0.1:{ports.metrics}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    wanted = ("nv_inference_request_success{",)
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))


def _status(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310  # loopback, http
        return int(response.status)


def _batch_sizes(ports: Ports) -> str:
    with Client(f"http://127.0.0.1:{ports.http}") as client:
        statistics = client.statistics(MODEL)
    batches = statistics["model_stats"][0]["batch_stats"]
    return ", ".join(
        f"{batch['batch_size']} ({batch['compute_infer']['count']} times)"
        for batch in sorted(batches, key=lambda batch: batch["batch_size"])
    )


def _report(
    rows: Rows, ports: Ports, home: Path, checks: list[Check], passes: dict[str, Answers]
) -> None:
    table = Table("one row per request", "rows", "accuracy", "p50 ms", "p99 ms")
    for name, got in passes.items():
        p50, p99 = np.percentile(got.latencies_s, [50, 99]) * 1e3
        accuracy = f"{got.accuracy(rows):.1%}"
        table.add_row(name, str(len(got.labels)), accuracy, f"{p50:.2f}", f"{p99:.2f}")
    console.print(table)
    console.print("[dim]latency as a Python client on the same cores saw it[/]")
    console.print(f"batch sizes seen: {_batch_sizes(ports)}\n", soft_wrap=True)
    for check in checks:
        mark = "[green]ok[/]    " if check.held else "[red]FAILED[/]"
        console.print(f"{mark} {check.name}  [dim]{check.seen}[/]")
    console.print(f"""
HTTP and gRPC   http://127.0.0.1:{ports.http}
gRPC            127.0.0.1:{ports.grpc}
metrics         http://127.0.0.1:{ports.metrics}/metrics
management      http://127.0.0.1:{ports.admin} (`headrace token show --home {home}` lets in)
""")
    body = json.dumps(_body(rows), separators=(",", ":"))
    console.print(f"curl {_infer_url(ports)} -d '{body}'", soft_wrap=True, markup=False)


def _infer_url(ports: Ports) -> str:
    return f"http://127.0.0.1:{ports.http}/v2/models/{MODEL}/infer"


def _choose_ports() -> Ports:
    """The usual ports where all are free, else ones that the system picks."""
    usual = Ports(http=8000, grpc=8001, metrics=8002, admin=8080)
    if all(map(_is_free, (usual.http, usual.grpc, usual.metrics, usual.admin))):
        return usual
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(4)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        http, grpc, metrics, admin = (listener.getsockname()[1] for listener in sockets)
    return Ports(http=http, grpc=grpc, metrics=metrics, admin=admin)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


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
