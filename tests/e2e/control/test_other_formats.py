"""OpenVINO, SavedModels and TFLite answer through Envoy, from confined replicas, as in process."""

from pathlib import Path

import numpy as np
import pytest

from headrace.client import Client
from tests import openvino_models, savedmodels, tflite_models
from tests.e2e.control.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDING = 1e-6
"""From the same sums in NumPy."""
KERAS = 2e-5


@pytest.mark.long
def test_each_format_answers_as_in_process(system: System, tmp_path: Path) -> None:
    paths = {
        "openvino": openvino_models.perceptron(tmp_path / "ir").parent,
        "savedmodel": savedmodels.write(tmp_path / "saved"),
        "tflite": tflite_models.write(tmp_path / "net.tflite", tflite_models.perceptron()),
    }
    expected = {
        "openvino": openvino_models.expected,
        "savedmodel": savedmodels.expected,
        "tflite": tflite_models.expected,
    }
    system.start(*({"name": name, "model": str(path)} for name, path in paths.items()))
    system.wait_ready(120)

    with Client(system.where().http_url) as client:
        for name in paths:
            metadata = client.metadata(name)
            columns = metadata.inputs[0].shape[1]
            rows = np.random.default_rng(1).normal(size=(20, columns)).astype(np.float32)
            answer = client.infer(name, {"x": rows}).outputs["y"]
            assert np.abs(answer - expected[name](rows)).max() < ROUNDING, name


@pytest.mark.tensorflow
def test_a_network_of_keras_answers_as_keras(system: System, tmp_path: Path) -> None:
    exported = savedmodels.keras_images(tmp_path)
    rows = np.random.default_rng(1).random((8, 12, 12, 3)).astype(np.float32)
    system.start({"name": "images", "model": str(exported.path)})
    system.wait_ready(180)

    with Client(system.where().http_url) as client:
        (spec,) = client.metadata("images").inputs
        (answer,) = client.infer("images", {spec.name: rows}).outputs.values()
    assert np.abs(answer - exported.expected(rows)).max() < KERAS
