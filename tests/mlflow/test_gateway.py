"""MLflow folders behind the gateway, in the sandbox, next to each other."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.mlflow.conftest import Logged
from tests.mlflow.test_folders import assert_answers_as_mlflow

pytestmark = pytest.mark.mlflow

FLAVORS = ("sklearn", "pytorch", "tensorflow", "pyfunc")
PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--admin-port", "0")


@pytest.fixture
def headrace(tmp_path: Path) -> Iterator[Callable[..., str]]:
    home = ("--home", str(tmp_path / "home"))

    def run(*arguments: str) -> str:
        child = subprocess.run(
            [sys.executable, "-m", "headrace.cli", *arguments, *home],
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
            cwd=tmp_path,
        )
        assert child.returncode == 0, child.stderr
        return child.stdout

    yield run
    run("down")


def test_each_endpoint_of_a_spec_answers_what_mlflow_answers(
    logged: Callable[[str], Logged], headrace: Callable[..., str], tmp_path: Path
) -> None:
    models = [logged(flavor) for flavor in FLAVORS]
    endpoints = [
        {"name": model.flavor, "model": str(model.folder), "allow_code": True} for model in models
    ]
    spec = tmp_path / "headrace.yaml"
    spec.write_text(json.dumps({"version": 1, "endpoints": endpoints}))
    up = ("up", str(spec), "--detach", "--json", "--wait-s", "300", *PORTS)
    url = json.loads(headrace(*up))["http_url"]

    for model in models:
        assert_answers_as_mlflow(f"{url}/endpoints/{model.flavor}/invocations", model)
    assert httpx.get(f"{url}/ping").status_code == 200
    answer = httpx.post(f"{url}/invocations", json={"inputs": []})
    assert answer.status_code == 404
    assert "/endpoints/NAME/invocations" in answer.text


def test_only_endpoint_answers_without_its_name(
    logged: Callable[[str], Logged], headrace: Callable[..., str]
) -> None:
    model = logged("catboost")
    up = ("up", str(model.folder), "--name", "only", "--detach", "--json", *PORTS)
    url = json.loads(headrace(*up))["http_url"]

    assert_answers_as_mlflow(f"{url}/invocations", model)
