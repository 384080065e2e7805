"""Real Envoys and stand-in replicas, all ended by pid whatever happens."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gateway.lab import Lab


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lab() -> Iterator[Lab]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        lab = Lab(Path(directory))
        try:
            yield lab
        finally:
            lab.close()
