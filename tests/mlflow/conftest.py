"""A tracking server of MLflow on loopback, and models of every flavor that MLflow logged there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port

BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A model that MLflow logged: its folder, its run, and what MLflow answers."""

    flavor: str
    folder: Path
    run: str
    answers: list[dict[str, Any]]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the variables of a process that uses the tracking server."""
    root = tmp_path_factory.mktemp("tracking")
    url = f"http://127.0.0.1:{free_port()}"
    variables = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": url,
    }
    arguments = ["server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    arguments += ["--workers", "1", "--backend-store-uri", f"sqlite:///{root}/db.sqlite"]
    arguments += ["--artifacts-destination", str(root / "artifacts")]
    log = root / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            env={**variables, "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=output,
            stderr=output,
            cwd=root,
        )
    try:
        until = time.monotonic() + 300
        while not _answers(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield variables
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def logged(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Logged]:
    """Return a function that gives the model of a flavor; each is logged once."""
    done: dict[str, Logged] = {}

    def log(flavor: str) -> Logged:
        if flavor not in done:
            directory = tmp_path_factory.mktemp(flavor)
            child = subprocess.run(
                [sys.executable, "-m", "tests.mlflow.models", flavor, str(directory)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert child.returncode == 0, child.stderr[-4000:]
            expected = json.loads((directory / "expected.json").read_text())
            done[flavor] = Logged(
                flavor=flavor,
                folder=directory / "folder",
                run=expected["run"],
                answers=expected["answers"],
            )
        return done[flavor]

    return log
