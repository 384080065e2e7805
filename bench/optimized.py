"""How much of an optimized model's gain is left when it is served? Both in replicas, in turn.

    python -m bench.optimized MODEL OPTIMIZED [--length 128] [--rows 1]

MODEL and OPTIMIZED are files or directories, as `headrace optimize MODEL --out OPTIMIZED` leaves
them. Requests are binary, over a Unix socket, one at a time; both are timed in process too.
"""

import argparse
import http.client
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from bench import processes
from headrace.core import ReplicaSettings, SystemClock, Tensors, example_inputs
from headrace.load.target import binary_message
from headrace.optimize.timing import (
    ProcStat,
    TimedCandidate,
    Timing,
    TimingSettings,
    measure,
    summarize,
)
from headrace.runtimes import LoadOptions, Model, load_model
from headrace.runtimes.base import Tuning

BASELINE = Tuning(disabled_optimizers=(), arena=True, spinning=True)
"""ONNX Runtime's own defaults, which `headrace optimize` compares with."""
BLOCKS, WINDOW_S, LIMIT_S = 40, 0.3, 240.0


class OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def replica(stack: ExitStack, folder: Path, name: str, model: Path) -> Path:
    """The socket of a replica that serves `model`."""
    path = folder / f"{name}.sock"
    settings = ReplicaSettings(
        model_name="model", model_version="1", path=str(model.absolute()), uds=str(path)
    )
    file = folder / f"{name}.json"
    file.write_bytes(msgspec.json.encode(settings))

    def is_ready() -> bool:
        try:
            connection = OverSocket(path)
            connection.request("GET", "/v2/models/model/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False

    stack.enter_context(
        processes.running(
            [sys.executable, "-m", "headrace.serving", "--settings", str(file)],
            part=name,
            cores=frozenset({0}),
            log=folder / f"{name}.log",
            is_ready=is_ready,
        )
    )
    return path


def asked(path: Path, inputs: Tensors) -> Callable[[], None]:
    """One request to a replica, checked."""
    connection = OverSocket(path)
    headers, body = binary_message("model", "1", inputs)

    def once() -> None:
        connection.request("POST", "/v2/models/model/infer", body, headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {data[:300]!r}")

    return once


def ran(model: Model, inputs: Tensors) -> Callable[[], None]:
    """One run in this process."""

    def once() -> None:
        model.run(inputs)

    return once


def compared(plain: Callable[[], None], fast: Callable[[], None]) -> Timing:
    """The optimized one's times against the plain one's."""
    windows = measure(
        [TimedCandidate(name="plain", run=plain), TimedCandidate(name="optimized", run=fast)],
        settings=TimingSettings(blocks=BLOCKS, window_s=WINDOW_S),
        until=time.monotonic() + LIMIT_S,
        clock=SystemClock(),
        cpu=ProcStat(),
        rng=np.random.default_rng(0),
    )
    found = summarize(windows, baseline="plain", rng=np.random.default_rng(0))
    print(f"  plain {found['plain'].p50_s * 1e3:.3f} ms", end=", ")
    timing = found["optimized"]
    low, high = timing.cut_ci_ratio or (float("nan"), float("nan"))
    print(
        f"optimized {timing.p50_s * 1e3:.3f} ms: cut {timing.cut_ratio:.2%} [{low:.2%}, {high:.2%}]"
    )
    return timing


def main() -> int:
    """Exit status: 0 if at least 95 % of the gain is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("optimized", type=Path)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1)
    chosen = parser.parse_args()
    options = LoadOptions(device="cpu", tuning=BASELINE)
    plain, fast = load_model(chosen.model, options=options), load_model(chosen.optimized)
    inputs = example_inputs(plain.signature, rows=chosen.rows, variable=chosen.length)
    print("in process, the plain one with ONNX Runtime's own defaults")
    offline = compared(ran(plain, inputs), ran(fast, inputs))
    print("through replicas on one core, asked from the other")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        first = replica(stack, folder, "plain", chosen.model)
        second = replica(stack, folder, "optimized", chosen.optimized)
        served = compared(asked(first, inputs), asked(second, inputs))
    kept = served.cut_ratio / offline.cut_ratio
    print(f"{kept:.1%} of the gain is left")
    return 0 if kept >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
