"""A system, and a first version that it serves."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.model_files import write_version


@pytest.fixture
def system() -> Iterator[System]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "home")
        try:
            yield system
        finally:
            system.close()


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_version(tmp_path / "first" / "model.py")
