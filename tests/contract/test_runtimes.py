"""Every built-in runtime passes the suite that plug-ins have to pass."""

from pathlib import Path

import pytest

from headrace.runtimes import Runtime
from headrace.runtimes.onnx.runtime import OnnxRuntime
from headrace.runtimes.python import PythonRuntime
from headrace.testing import models
from headrace.testing.contracts import RuntimeContract


class OnnxContract(RuntimeContract):
    model_name = "mlp"

    @pytest.fixture
    def runtime(self) -> Runtime:
        return OnnxRuntime()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        (path,) = models.write(tmp_path, self.model_name)
        return path

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        path = tmp_path / "half.onnx"
        path.write_bytes(models.mlp()[:5000])
        return path


class TestOnnxPerceptron(OnnxContract):
    pass


class TestOnnxEncoder(OnnxContract):
    model_name = "encoder"
    variable = 5


class TestOnnxText(OnnxContract):
    model_name = "strings"


class TestOnnxTwoOutputs(OnnxContract):
    model_name = "two_outputs"


class TestOnnxUnbatched(OnnxContract):
    model_name = "unbatched"


class TestOnnxSeeminglyBatched(OnnxContract):
    model_name = "cumulative"


class TestOnnxWrongDeclaration(OnnxContract):
    model_name = "wrong_declaration"


class TestOnnxImage(OnnxContract):
    model_name = "image"
    variable = 16


class TestOnnxDirectoryWithWeightsBesideIt(OnnxContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return models.write_external(tmp_path / "model").parent

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        directory = tmp_path / "no-weights"
        (models.write_external(directory).parent / "weights.bin").unlink()
        return directory


class PythonContract(RuntimeContract):
    source = models.python_double()

    @pytest.fixture
    def runtime(self) -> Runtime:
        return PythonRuntime()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        path = tmp_path / "double.py"
        path.write_text(self.source)
        return path

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        path = tmp_path / "broken.py"
        path.write_text("class Model:\n    def infer(")
        return path


class TestPython(PythonContract):
    pass


class TestPythonConcurrent(PythonContract):
    source = models.python_double(concurrent=True)


class TestPythonDirectory(PythonContract):
    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        directory = tmp_path / "double"
        directory.mkdir()
        (directory / "model.py").write_text(self.source)
        return directory
