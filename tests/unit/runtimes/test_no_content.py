"""No word of a file that is no model reaches an error, a log or standard error."""

import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from headrace.core import HeadraceError, UnsupportedModelError
from headrace.runtimes import inspect_model
from headrace.runtimes.plugins import runtime_names
from headrace.testing import models
from tests import openvino_models, tabular_models, tflite_models
from tests.gguf_models import LLAMA, gguf
from tests.secret_files import SECRET, leaked, secret_contents, write_secret

pytestmark = pytest.mark.slow

FILES: Final = {
    "catboost": ("f", "f.cbm"),
    "gguf": ("f", "f.gguf"),
    "huggingface": ("f", "config.json", "tokenizer.json", "preprocessor_config.json"),
    "lightgbm": ("f", "f.txt", "model.txt"),
    "mlflow": ("f", "MLmodel"),
    "mlserver": ("f", "model-settings.json"),
    "onnx": ("f", "f.onnx", "f.ort", "model.onnx"),
    "openvino": ("f", "f.xml", "f.onnx", "f.tflite", "f.pdmodel", "model.xml", "saved_model.pb"),
    "optimized": ("f", "optimized.json"),
    "pipeline": ("f", "pipeline.yaml"),
    "python": ("f", "f.py", "model.py"),
    "savedmodel": ("f.pb", "saved_model.pb"),
    "sklearn": ("f", "f.skops"),
    "tflite": ("f", "f.tflite", "model.tflite"),
    "torch_export": ("f", "f.pt2", "model.pt2", "signature.json"),
    "torchscript": ("f", "f.pt", "model.pt", "signature.json"),
    "xgboost": ("f", "f.json", "f.ubj", "model.json"),
}
"""Names of files that a runtime reads, and of some that it does not."""

CUTS: Final = 60


@pytest.fixture
def outputs_of(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Callable[[Path, str], str]:
    """The outputs of an inspection: its error with its causes, its log, and both streams."""
    caplog.set_level(logging.DEBUG)

    def outputs(path: Path, runtime: str) -> str:
        caplog.clear()
        error = ""
        try:
            inspect_model(path, runtime, allow_code=True)
        except HeadraceError as refused:
            error = "".join(traceback.format_exception(refused))
        return "\n".join((error, caplog.text, *capfd.readouterr()))

    return outputs


def _marked(name: str) -> object:
    is_torch = name.startswith("torch")
    return pytest.param(name, marks=pytest.mark.torch) if is_torch else name


def test_every_runtime_is_tried() -> None:
    assert FILES.keys() == set(runtime_names())


@pytest.mark.parametrize("runtime", [_marked(name) for name in FILES])
def test_a_file_that_is_no_model_is_quoted_nowhere(
    tmp_path: Path, runtime: str, outputs_of: Callable[[Path, str], str]
) -> None:
    leaks = {}
    for number, (form, content) in enumerate(secret_contents()):
        for name in FILES[runtime]:
            path = write_secret(tmp_path / f"{number}-{name}", name, content)
            if leaked(text := outputs_of(path, runtime)):
                leaks[form, name] = text
    assert leaks == {}


def test_a_file_whose_format_is_detected_is_quoted_nowhere(
    tmp_path: Path, outputs_of: Callable[[Path, str], str]
) -> None:
    names = sorted({name for files in FILES.values() for name in files})
    leaks = {}
    for number, (form, content) in enumerate(secret_contents()):
        for name in names:
            path = write_secret(tmp_path / f"{number}-{name}", name, content)
            if leaked(text := outputs_of(path, "")):
                leaks[form, name] = text
    assert leaks == {}


def _onnx(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(models.mlp())
    return path


def _gguf(folder: Path) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(gguf(LLAMA, [("token_embd.weight", (64, 64), 0, bytes(1 << 14))]))
    return path


MODELS: Final[dict[str, Callable[[Path], Path]]] = {
    "catboost": lambda folder: tabular_models.catboost(folder, "multiclass").path,
    "gguf": _gguf,
    "lightgbm": lambda folder: tabular_models.lightgbm(folder, "multiclass").path,
    "onnx": _onnx,
    "openvino": openvino_models.perceptron,
    "sklearn": lambda folder: tabular_models.sklearn(folder, "multiclass").path,
    "tflite": lambda folder: tflite_models.write(folder / "m.tflite", tflite_models.perceptron()),
    "xgboost": lambda folder: tabular_models.xgboost(folder, "multiclass").path,
    "xgboost in UBJSON": lambda folder: (
        tabular_models.xgboost(folder, "binary", suffix=".ubj").path
    ),
}


def _damaged(data: bytes) -> Iterator[bytes]:
    """A model cut off with the secret at its end, and with the secret in its middle."""
    secret = SECRET.encode()
    for number in range(CUTS):
        cut = len(data) * number // CUTS
        yield data[:cut] + secret
        yield data[:cut] + secret + data[cut + len(secret) :]


@pytest.mark.parametrize("made", MODELS)
def test_a_damaged_model_is_quoted_nowhere(
    tmp_path: Path, made: str, outputs_of: Callable[[Path, str], str]
) -> None:
    path = MODELS[made](tmp_path)
    data, leaks = path.read_bytes(), []
    outputs_of(path, made.partition(" ")[0])  # what training wrote is not looked at
    for content in _damaged(data):
        path.write_bytes(content)
        if leaked(text := outputs_of(path, made.partition(" ")[0])):
            leaks.append(text)
    assert leaks == []


def test_source_code_is_not_looked_up_for_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_secret(tmp_path, "model.py", f"assert (0, '{SECRET}')\n1 is '{SECRET}'\n".encode())

    with pytest.raises(UnsupportedModelError, match="holds no model"):
        inspect_model(path, "python", allow_code=True)
    assert not leaked("".join(capfd.readouterr()))
