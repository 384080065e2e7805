"""What PyTorch and TensorFlow save is made faster, and is itself what the report compares with."""

import json
import signal
import time
from typing import Final

import numpy as np
import pytest

from headrace.client import Client
from headrace.core import Array, Tensors
from tests.e2e.cli.conftest import Shell
from tests.ports import free_port
from tests.wide_networks import LABELS, ROWS, SAVED, expected, write_labelled

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

OF_PYTORCH: Final = [
    pytest.param(kind, marks=pytest.mark.torch) for kind in ("torchscript", "torch_export")
]
OF_TENSORFLOW: Final = [pytest.param("savedmodel", marks=pytest.mark.tensorflow)]
FRAMEWORKS: Final = {
    "torchscript": ("torch-eager", "PyTorch, the unchanged TorchScript file"),
    "torch_export": ("torch-eager", "PyTorch, the unchanged exported program"),
    "savedmodel": ("savedmodel", "TensorFlow, the unchanged SavedModel"),
}
INT8: Final = "onnxruntime-int8-dynamic"


@pytest.mark.parametrize("kind", [*OF_PYTORCH, *OF_TENSORFLOW])
def test_a_network_of_a_framework_becomes_a_faster_version_that_answers_as_it_did(
    shell: Shell, kind: str
) -> None:
    path, data = SAVED[kind](shell.folder), write_labelled(shell.folder / "test.npz")
    reference, title = FRAMEWORKS[kind]

    done = shell.run(
        *("optimize", path, "--allow-code", "--data", data, "--name", "wide", "--budget", "80s"),
        *("--only", reference, "--only", INT8, "--report", "report.html", "--json"),
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["baseline"]["name"] == "onnxruntime-fp32"
    assert [(one["name"], one["title"]) for one in report["references"]] == [(reference, title)]
    (eager,) = report["references"]
    assert eager["p50_s"] > 0
    assert eager["cut_ci_ratio"][0] <= eager["cut_ratio"] <= eager["cut_ci_ratio"][1]
    chosen = report["chosen"]
    assert chosen["name"] == INT8
    assert chosen["cut_ci_ratio"][0] > 0
    assert chosen["accuracy"] == report["baseline"]["accuracy"] == 1
    assert chosen["n"] == len(LABELS)
    assert any(f"Converted from {kind} to ONNX by" in note for note in report["notes"])
    page = (shell.folder / "report.html").read_text()
    assert title in page
    assert "ONNX Runtime, FP32, default options" in page
    version = json.loads(shell.run("models", "show", "wide:1", "--json").stdout)
    assert (version["runtime"], version["runs_code"]) == ("optimized", False)
    assert version["metadata"]["optimized_runtime"] == kind
    answer = served(shell, "wide:1", {"x": ROWS[:32]})
    assert np.argmax(answer, axis=1).tolist() == LABELS[:32].tolist()
    assert np.abs(answer - expected(ROWS[:32])).max() < 0.5


@pytest.mark.parametrize("kind", OF_PYTORCH)
def test_a_program_is_not_run_unasked(shell: Shell, kind: str) -> None:
    path = SAVED[kind](shell.folder)

    done = shell.run("optimize", path, "--budget", "40s")

    assert done.returncode == 1
    assert "--allow-code" in done.stderr
    assert not list(shell.home.glob("optimize/*"))


def served(shell: Shell, version: str, inputs: Tensors) -> Array:
    """What a version answers by its only output, from a server of its own."""
    port = free_port()
    running = shell.start("serve", version, "--port", str(port), "--metrics-port", "0")
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 60
            while not client.ready() and time.monotonic() < until:
                time.sleep(0.05)
            (answer,) = client.infer(version.partition(":")[0], inputs).outputs.values()
    finally:
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    return answer
