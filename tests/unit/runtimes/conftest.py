from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.runtimes import LoadOptions
from headrace.runtimes.onnx.runtime import OnnxModel
from headrace.testing import models

Open = Callable[[bytes], OnnxModel]


@pytest.fixture
def open_onnx(tmp_path: Path) -> Open:
    def load(content: bytes) -> OnnxModel:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        return OnnxModel.open(path, LoadOptions(device="cpu"))

    return load


@pytest.fixture
def named(open_onnx: Open) -> Callable[[str], OnnxModel]:
    return lambda name: open_onnx(models.ONNX_MODELS[name]())
