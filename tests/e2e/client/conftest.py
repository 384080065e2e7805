"""Replicas with TCP, a Unix socket and gRPC for all tests of this folder."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing import models
from tests.e2e.replicas import Replica, running
from tests.ports import free_port


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def replica(folder: Path) -> Iterator[Replica]:
    path = folder / "mlp.onnx"
    path.write_bytes(models.mlp())
    with running(
        folder,
        path,
        uds=str(folder / "m.sock"),
        grpc_port=free_port(),
        max_body_bytes=1 << 20,
        labels={"prob": ["no", "yes"]},
    ) as replica:
        yield replica


@pytest.fixture(scope="session")
def words(folder: Path) -> Iterator[Replica]:
    path = folder / "words.onnx"
    path.write_bytes(models.strings())
    with running(folder, path, grpc_port=free_port()) as replica:
        yield replica


@pytest.fixture(scope="session")
def slow(folder: Path) -> Iterator[Replica]:
    """Takes 0.3 s for a run, and lets one request wait."""
    path = folder / "slow.py"
    path.write_text(models.python_double(delay_s=0.3))
    batching = {"max_batch_size": 1, "max_queue_size": 1, "max_concurrent_runs": 1}
    with running(folder, path, grpc_port=free_port(), batching=batching) as replica:
        yield replica
