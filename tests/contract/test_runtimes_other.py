"""Runtimes of further formats pass the suite that plug-ins have to pass."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.pipeline import HuggingFaceRuntime
from headrace.runtimes import LoadOptions, Runtime
from headrace.runtimes.base import Tuning
from headrace.runtimes.openvino import OpenvinoRuntime
from headrace.runtimes.optimized.runtime import OptimizedRuntime
from headrace.runtimes.tensorflow.savedmodel import SavedmodelRuntime
from headrace.runtimes.tensorflow.tflite import TfliteRuntime
from headrace.testing import models
from headrace.testing.contracts import RuntimeContract
from tests import hub_folders, openvino_models, optimized_models, savedmodels, tflite_models


class OpenvinoContract(RuntimeContract):
    write: Callable[[Path], Path]

    @pytest.fixture
    def runtime(self) -> Runtime:
        return OpenvinoRuntime()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return type(self).write(tmp_path)

    @pytest.fixture
    def broken_path(self, model_path: Path) -> Path:
        path = model_path.with_name("half.xml")
        path.write_bytes(model_path.read_bytes()[:1500])
        return path


class TestOpenvino(OpenvinoContract):
    write = staticmethod(openvino_models.perceptron)


class TestOpenvinoRowsThatDepend(OpenvinoContract):
    write = staticmethod(openvino_models.total)


class TestOpenvinoWithAState(OpenvinoContract):
    write = staticmethod(openvino_models.counter)


class TestOpenvinoOfManyTypes(OpenvinoContract):
    write = staticmethod(openvino_models.kinds)


class TestOpenvinoDirectory(OpenvinoContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return openvino_models.perceptron(tmp_path / "model").parent

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        file = openvino_models.perceptron(tmp_path / "no-weights")
        file.with_suffix(".bin").unlink()
        return file.parent


class SavedmodelContract(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return SavedmodelRuntime()

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        path = savedmodels.write(tmp_path / "half")
        file = path / "saved_model.pb"
        file.write_bytes(file.read_bytes()[:200])
        return path


class TestSavedmodelByOpenvino(SavedmodelContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        openvino_models.library()
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        return savedmodels.write(tmp_path / "model")


@pytest.mark.tensorflow
class TestSavedmodelByTensorflow(SavedmodelContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        savedmodels.tensorflow()
        return savedmodels.write(tmp_path / "model")


@pytest.mark.tensorflow
class TestSavedmodelOfKeras(SavedmodelContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return savedmodels.keras_images(tmp_path).path


class TfliteContract(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return TfliteRuntime()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return tflite_models.write(tmp_path / "net.tflite", tflite_models.perceptron())

    @pytest.fixture
    def broken_path(self, model_path: Path) -> Path:
        path = model_path.with_name("half.tflite")
        path.write_bytes(model_path.read_bytes()[:300])
        return path


class TestTflite(TfliteContract):
    pass


class TestTfliteQuantised(TfliteContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return tflite_models.write(tmp_path / "net.tflite", tflite_models.quantised())


class TestTfliteOfOneRow(TfliteContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return tflite_models.write(tmp_path / "net.tflite", tflite_models.perceptron(rows=1))


class OptimizedContract(RuntimeContract):
    runtimes: tuple[str, ...] = ("onnx",)
    bounds: tuple[int | None, ...] = (None,)
    model_name = "mlp"
    tuning = Tuning(arena=True, disabled_optimizers=())

    @pytest.fixture
    def runtime(self) -> Runtime:
        return OptimizedRuntime()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        if "openvino" in self.runtimes:
            openvino_models.library()
        return optimized_models.write(
            tmp_path,
            runtimes=self.runtimes,
            bounds=self.bounds,
            tuning=self.tuning,
            model=self.model_name,
        )

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        path = optimized_models.write(tmp_path / "half", model=self.model_name)
        (file,) = path.rglob("*.onnx")
        file.write_bytes(file.read_bytes()[:60])
        return path


class TestOptimizedByOnnxRuntime(OptimizedContract):
    pass


class TestOptimizedByOpenvino(OptimizedContract):
    runtimes = ("openvino",)
    tuning = Tuning(precision="f32", intra_op_threads=2)


class TestOptimizedByBoth(OptimizedContract):
    runtimes = ("onnx", "openvino")
    bounds = (2, None)


class TestOptimizedEncoder(OptimizedContract):
    runtimes = ("openvino",)
    model_name = "encoder"
    variable = 5


class TestOptimizedText(OptimizedContract):
    model_name = "strings"


class TestOptimizedUnbatched(OptimizedContract):
    model_name = "unbatched"


def test_openvino_reads_onnx_where_it_is_named(tmp_path: Path) -> None:
    (path,) = models.write(tmp_path, "mlp")
    openvino_models.library()

    assert OpenvinoRuntime().recognises(path) is False
    assert OpenvinoRuntime().load(path, LoadOptions()).signature.batched


class TestHuggingFaceFolder(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return HuggingFaceRuntime()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return hub_folders.write_text(tmp_path / "mood")

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        folder = hub_folders.write_text(tmp_path / "half")
        file = folder / "model.onnx"
        file.write_bytes(file.read_bytes()[:100])
        return folder
