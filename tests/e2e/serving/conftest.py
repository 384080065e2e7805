"""One replica of the small MLP for all tests of this folder, and the folder with the models."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing import models
from tests.e2e.replicas import Replica, running


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def mlp(model_folder: Path) -> Path:
    path = model_folder / "mlp.onnx"
    path.write_bytes(models.mlp())
    return path


@pytest.fixture(scope="session")
def replica(model_folder: Path, mlp: Path) -> Iterator[Replica]:
    with running(
        model_folder, mlp, max_body_bytes=1 << 20, header_timeout_s=1.0, body_timeout_s=2.0
    ) as replica:
        yield replica
        assert "Traceback" not in replica.log_text()
