"""A whole system: control plane, gateway, replicas."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing import models
from tests.e2e.control.system import System


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    path.write_bytes(models.mlp())
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.onnx"
    path.write_bytes(models.mlp(seed=7))
    return path


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path / "home")
    yield system
    system.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with three endpoints: `m` (the MLP), `words` (strings), `slow` (Python, 0.3 s)."""
    folder = tmp_path_factory.mktemp("up")
    for name, content in (("m", models.mlp()), ("words", models.strings())):
        (folder / f"{name}.onnx").write_bytes(content)
    (folder / "slow.py").write_text(models.python_double(delay_s=0.3))
    system = System(folder / "home")
    batching = {"max_batch_size": 8}
    labels = {"prob": ["no", "yes"]}
    system.start(
        {"name": "m", "model": str(folder / "m.onnx"), "batching": batching, "labels": labels},
        {"name": "words", "model": str(folder / "words.onnx")},
        {
            "name": "slow",
            "model": str(folder / "slow.py"),
            "batching": {"max_batch_size": 1, "max_queue_size": 2},
        },
    )
    system.wait_ready()
    yield system
    system.close()
