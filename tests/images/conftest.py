"""An engine, the images built once, and models to serve.

A daemon that runs is used, else one is started and ended with all that it made. The base is made of
Debian's packages unless `BASE` names another.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from headrace.testing import models
from tests.images.containers import (
    ROOT,
    Docker,
    start_daemon,
    stop_daemon,
    why_no_engine,
)

BUILT = ("replica", "gateway", "control", "worker", "standalone")
BUILD_WITHIN_S = 1800.0
SLOW_S = 2.0


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
    """Names of the images, by what they are for."""
    environ = {
        "BASE": "debian",
        "NETWORK": "host",
        "PROGRESS": "plain",
        "PREFIX": "headrace-test",
        "TAG": "test",
        **docker.environ,
        "PYTHON": sys.executable,
        "SBOM_DIR": str(sboms),
    }
    log = sboms / "build.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [ROOT / "scripts" / "images.sh", *BUILT],
            stdout=output,
            stderr=output,
            env=environ,
            timeout=BUILD_WITHIN_S,
            check=False,
        )
    text = log.read_text(errors="replace")
    assert done.returncode == 0, text[-4000:]
    print(text[text.rindex("\nimage ") :])
    return {name: f"{environ['PREFIX']}/{name}:{environ['TAG']}" for name in BUILT}


@pytest.fixture(scope="session")
def model_folder() -> Iterator[Path]:
    """Models that everybody may read: containers run as nobody in particular."""
    with tempfile.TemporaryDirectory(prefix="hr-models-") as folder:
        at = Path(folder)
        at.chmod(0o755)
        (at / "mlp.onnx").write_bytes(models.mlp())
        (at / "broken.onnx").write_bytes(b"no model\n")
        (at / "slow").mkdir()
        (at / "slow" / "model.py").write_text(models.python_double(delay_s=SLOW_S))
        for path in at.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
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
