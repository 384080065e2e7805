"""An engine, the images built once, and models to serve.

A daemon that runs is used, else one is started and ended with all that it made. The base is made of
Debian's packages unless `BASE` names another.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from headrace.testing import models
from tests.images.containers import (
    Docker,
    build_images,
    start_daemon,
    stop_daemon,
    why_no_engine,
)

BUILT = ("replica", "gateway", "control", "worker", "standalone")
SLOW_S = 2.0
HANGING = """
import time

class Hanging:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}
    batched = True

    def infer(self, inputs):
        if inputs["x"].min() < 0:
            time.sleep(3600)
        return {"y": inputs["x"] * 2}
"""
"""Never answers what is below 0."""
LATE = """
import time

class Late:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}

    def __init__(self):
        print("loading begins", flush=True)
        time.sleep(3600)

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    if reason := why_no_engine():
        pytest.skip(reason)
    if Docker().run("version").returncode == 0:
        yield Docker()
        return
    with tempfile.TemporaryDirectory(prefix="hr-docker-") as folder:
        at = Path(folder) / "engine"
        try:
            yield start_daemon(at)
        finally:
            stop_daemon(at)


@pytest.fixture(scope="session")
def sboms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the build puts bills of materials."""
    return tmp_path_factory.mktemp("sboms")


@pytest.fixture(scope="session")
def images(docker: Docker, sboms: Path) -> Mapping[str, str]:
    """Names of the images that need no framework, by what they are for."""
    return build_images(docker, sboms, *BUILT)


@pytest.fixture(scope="session")
def model_folder() -> Iterator[Path]:
    """Models that everybody may read: containers run as nobody in particular."""
    with tempfile.TemporaryDirectory(prefix="hr-models-") as folder:
        at = Path(folder)
        at.chmod(0o755)
        (at / "mlp.onnx").write_bytes(models.mlp())
        (at / "broken.onnx").write_bytes(b"no model\n")
        (at / "half.onnx").write_bytes(models.mlp()[:3000])
        (at / "empty.onnx").write_bytes(b"")
        (at / "private.onnx").write_bytes(models.mlp())
        for name, code in (
            ("double", models.python_double()),
            ("slow", models.python_double(delay_s=SLOW_S)),
            ("hanging", HANGING),
            ("late", LATE),
        ):
            (at / name).mkdir()
            (at / name / "model.py").write_text(code)
        for path in at.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (at / "private.onnx").chmod(0o600)
        yield at


@pytest.fixture(scope="session")
def mount(model_folder: Path) -> str:
    return f"{model_folder}:/models:ro"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them build and run images."""
    here = str(Path(__file__).parent) + os.sep
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker("images")
