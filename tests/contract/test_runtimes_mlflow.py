"""MLflow folders pass the suite that plug-ins have to pass."""

import json
from pathlib import Path

import pytest

from headrace.runtimes import Runtime
from headrace.runtimes.mlflow.runtime import MlflowRuntime
from headrace.testing import models
from headrace.testing.contracts import RuntimeContract


def write_folder(path: Path) -> Path:
    """Write a folder as MLflow's flavor for ONNX does, and return it."""
    path.mkdir()
    (path / "model.onnx").write_bytes(models.matmul())
    flavors = {
        "onnx": {"data": "model.onnx"},
        "python_function": {"loader_module": "mlflow.onnx", "data": "model.onnx"},
    }
    (path / "MLmodel").write_text(json.dumps({"flavors": flavors}))
    return path


class TestMlflowFolder(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return MlflowRuntime()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return write_folder(tmp_path / "logged")

    @pytest.fixture
    def broken_path(self, tmp_path: Path) -> Path:
        folder = write_folder(tmp_path / "half")
        file = folder / "model.onnx"
        file.write_bytes(file.read_bytes()[:100])
        return folder
