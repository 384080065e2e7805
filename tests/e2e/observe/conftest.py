"""One system that runs for all tests of a file, with requests of every kind behind it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing import models
from tests.e2e.control.system import System
from tests.e2e.debian import NoToolError
from tests.e2e.observe.prometheus import Tools, find_prometheus


@pytest.fixture(scope="session")
def tools() -> Tools:
    try:
        return find_prometheus()
    except NoToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        model = Path(directory) / "mlp.onnx"
        model.write_bytes(models.mlp())
        with contextlib.closing(System(Path(directory) / "home")) as system:
            system.start(
                {"name": "fraud", "model": str(model)},
                {"name": "idle", "model": str(model)},
                drain_timeout_s=0.1,
            )
            system.wait_ready()
            yield system
