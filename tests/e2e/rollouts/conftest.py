"""A system, and a first version that it serves."""

from pathlib import Path

import pytest

from tests.e2e.rollouts.model_files import write_version


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_version(tmp_path / "first" / "model.py")
