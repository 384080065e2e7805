"""Folders of every flavor are served by one command, and answer what MLflow's server answers."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mlflow.conftest import Logged
from tests.ports import free_port

pytestmark = pytest.mark.mlflow

RUNS_CODE = {"sklearn-pickle", "pytorch", "tensorflow", "pyfunc"}
FLAVORS = (
    *("sklearn", "sklearn-pickle", "xgboost", "xgboost-booster", "lightgbm", "catboost", "onnx"),
    *("pytorch", "tensorflow", "pyfunc"),
)


@contextmanager
def serving(*arguments: str, log: Path) -> Iterator[str]:
    """Yield the URL of `headrace serve ARGUMENTS`, once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "headrace.cli", "serve", *arguments, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--metrics-port", str(free_port())], stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 300
        while not _is_ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping").is_success
    except httpx.TransportError:
        return False


def assert_same(actual: Any, expected: Any) -> None:  # noqa: ANN401  # JSON
    """Compare predictions; a missing number is null here, and NaN in MLflow's JSON."""
    if isinstance(expected, list):
        assert isinstance(actual, list)
        assert len(actual) == len(expected)
        for value, other in zip(actual, expected, strict=True):
            assert_same(value, other)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name, value in expected.items():
            assert_same(actual[name], value)
    elif isinstance(expected, float):
        if math.isnan(expected):
            assert actual is None
        else:
            assert actual == pytest.approx(expected, rel=1e-5, abs=1e-7)
    else:
        assert actual == expected


def assert_answers_as_mlflow(url: str, model: Logged) -> None:
    """Send every request that MLflow's server was sent, and compare."""
    compared = 0
    for answer in model.answers:
        if answer["status"] == 500:
            continue
        response = httpx.post(
            url,
            content=answer["body"].encode(),
            headers={"content-type": answer["content_type"]},
            timeout=60,
        )
        assert response.status_code == answer["status"], (answer["body"], response.text)
        if answer["status"] == 200:
            compared += 1
            assert_same(json.loads(response.text)["predictions"], answer["predictions"])
    assert compared >= 3


@pytest.mark.parametrize("flavor", FLAVORS)
def test_folder_answers_what_mlflow_answers(
    flavor: str, logged: Callable[[str], Logged], tmp_path: Path
) -> None:
    model = logged(flavor)
    flags = ["--allow-code"] if flavor in RUNS_CODE else []
    with serving(str(model.folder), *flags, log=tmp_path / "log") as url:
        assert_answers_as_mlflow(f"{url}/invocations", model)


@pytest.mark.parametrize("flavor", sorted(RUNS_CODE))
def test_folder_with_code_needs_permission(
    flavor: str, logged: Callable[[str], Logged], tmp_path: Path
) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "serve", str(logged(flavor).folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
    )
    assert child.returncode == 1
    assert "--allow-code" in child.stderr
