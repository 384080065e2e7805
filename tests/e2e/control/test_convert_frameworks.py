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

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

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


def of_pytorch(folder: Path) -> dict[str, Asked]:
    from tests.torch_models import PERCEPTRONS, ROWS, answered  # noqa: PLC0415  # imports PyTorch

    scripted, exported = (PERCEPTRONS[kind](folder) for kind in ("scripted", "exported"))
    rows = ROWS[:32]
    return {
        "scripted": Asked(scripted.path, "x", rows, lambda rows: answered(scripted.module, rows)),
        "exported": Asked(exported.path, "x", rows, lambda rows: answered(exported.module, rows)),
    }


def of_tensorflow(folder: Path) -> dict[str, Asked]:
    pytest.importorskip("tf2onnx", reason="no tf2onnx: make test SUITE=all installs it")
    images = keras_images(folder)
    lite = tflite_models.write(folder / "lite.tflite", tflite_models.perceptron())
    rng = np.random.default_rng(6)
    pictures = rng.random((4, 12, 12, 3)).astype(np.float32)
    return {
        "keras": Asked(images.path, "image", pictures, images.expected),
        "lite": Asked(lite, "x", rng.random((32, 4)).astype(np.float32), tflite_models.expected),
    }


@pytest.mark.parametrize(
    ("write", "allow"),
    [
        pytest.param(of_pytorch, ["--allow-code"], marks=pytest.mark.torch),
        pytest.param(of_tensorflow, [], marks=pytest.mark.tensorflow),
    ],
)
def test_converted_networks_answer_as_their_frameworks_in_process(
    system: System,
    shell: Shell,
    tmp_path: Path,
    write: Callable[[Path], dict[str, Asked]],
    allow: list[str],
) -> None:
    networks = write(tmp_path)
    for name, network in networks.items():
        push = ("models", "push", name, network.path, "--convert", "onnx", "--json")
        if allow:
            refused = shell.run(*push)
            assert refused.returncode != 0
            assert "--allow-code" in refused.stderr
        done = shell.run(*push, *allow)
        assert done.returncode == 0, done.stderr
        assert '"runtime":"onnx"' in done.stdout
        assert '"runs_code":false' in done.stdout
    system.start(*({"name": name, "model": f"{name}:1"} for name in networks))
    system.wait_ready(120)

    with Client(system.where().http_url) as client:
        for name, network in networks.items():
            (answer,) = client.infer(name, {network.name: network.rows}).outputs.values()
            assert np.abs(answer - network.expected(network.rows)).max() < TOLERANCE, name
