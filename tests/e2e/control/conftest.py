"""A home of its own for each test, and models; everything is ended by pid whatever happens."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing import models
from tests.e2e.control.system import System


@pytest.fixture
def system() -> Iterator[System]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "home")
        try:
            yield system
        finally:
            system.close()


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
