"""Networks converted at push answer through Envoy, without a framework, as theirs in process."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from headrace.client import Client
from headrace.core import Array
from tests import tflite_models
from tests.e2e.cli.conftest import Shell
from tests.e2e.control.system import System
from tests.savedmodels import keras_images
from tests.torch_models import PERCEPTRONS, ROWS, answered

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.frameworks]

pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: make test-all installs it")
TOLERANCE = 2e-5
"""Of a probability: other kernels sum in another order."""


class Asked(NamedTuple):
    """A model's file, what it is asked, and what its framework answers in this process."""

    path: Path
    name: str
    rows: Array
    expected: Callable[[Array], Array]


@pytest.fixture
def shell(system: System) -> Shell:
    shell = Shell(system.home.parent)
    shell.environment["HEADRACE_HOME"] = str(system.home)
    return shell


def test_converted_networks_answer_as_their_frameworks_in_process(
    system: System, shell: Shell, tmp_path: Path
) -> None:
    scripted, exported = (PERCEPTRONS[kind](tmp_path) for kind in ("scripted", "exported"))
    images = keras_images(tmp_path)
    lite = tflite_models.write(tmp_path / "lite.tflite", tflite_models.perceptron())
    pictures = np.random.default_rng(6).random((4, 12, 12, 3)).astype(np.float32)
    rows, narrow = ROWS[:32], np.ascontiguousarray(ROWS[:32, :4])
    asked = {
        "scripted": Asked(scripted.path, "x", rows, lambda rows: answered(scripted.module, rows)),
        "exported": Asked(exported.path, "x", rows, lambda rows: answered(exported.module, rows)),
        "keras": Asked(images.path, "image", pictures, images.expected),
        "lite": Asked(lite, "x", narrow, tflite_models.expected),
    }
    refused = shell.run("models", "push", "scripted", scripted.path, "--convert", "onnx")
    for name, one in asked.items():
        allow = ["--allow-code"] if name in {"scripted", "exported"} else []
        done = shell.run("models", "push", name, one.path, "--convert", "onnx", "--json", *allow)
        assert done.returncode == 0, done.stderr
        assert '"runtime":"onnx"' in done.stdout
        assert '"runs_code":false' in done.stdout
    system.start(*({"name": name, "model": f"{name}:1"} for name in asked))
    system.wait_ready(120)

    assert refused.returncode != 0
    assert "--allow-code" in refused.stderr
    with Client(system.where().http_url) as client:
        for name, one in asked.items():
            (answer,) = client.infer(name, {one.name: one.rows}).outputs.values()
            assert np.abs(answer - one.expected(one.rows)).max() < TOLERANCE, name
