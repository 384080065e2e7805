"""What all end-to-end tests share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read, as pytest's is not: replicas run as others under root."""
    with tempfile.TemporaryDirectory(prefix="hr-open-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)
