"""A home of its own for each test, and models; everything is ended by pid whatever happens."""

from pathlib import Path

import pytest

from headrace.testing import models


@pytest.fixture(scope="session")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mlp.onnx"
    path.write_bytes(models.mlp())
    return path


@pytest.fixture(scope="session")
def other_mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mlp.onnx"
    path.write_bytes(models.mlp(seed=7))
    return path
